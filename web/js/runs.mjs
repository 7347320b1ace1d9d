/**
 * All runs that the server knows, kept up to date. Several views look at the same run and are told when it changes.
 *
 * A view says `watch(id, tell)` and gets the run whole; changes are told at most once a frame. After the connection
 * was lost, everything is asked for again.
 */

import { listen, server, whenReconnected } from './api.mjs'
import { appendLog, applyEvent, applySummary, applyWhole, fromSummary, isElsewhere } from './run_state.mjs'

const LOG_EVERY_MS = 600
const ELSEWHERE_EVERY_MS = 10000

const known = new Map()
const watchers = new Map()
const listWatchers = new Set()
const changed = new Set()
const early = new Map() // what arrives of a run while it is being fetched whole: { events, summary }
let arrived = null // summaries that arrive while the list is being fetched: they are newer than the answer
let frame = 0

/** Begin: ask for the list and follow the messages. */
export function followRuns() {
  listen('musubi.run', takeNews)
  listen('musubi.event', ({ run, event }) => takeEvent(run, event))
  whenReconnected(() => refresh())
  setInterval(lookElsewhere, ELSEWHERE_EVERY_MS)
  return refresh()
}

/** Of runs of another ComfyUI no message comes here: they are asked for. */
export async function lookElsewhere() {
  const there = new Set(list().filter(isElsewhere).map(({ id }) => id))
  if (there.size) await refresh((id) => there.has(id))
}

/** Ask for the list again, and for the runs that are `wanted` whole and watched. A server without our routes has none. */
export async function refresh(wanted = () => true) {
  const newer = (arrived = new Map())
  let summaries
  try {
    summaries = await server.runs()
  } catch (error) {
    console.warn('[Musubi Tuner] The list of runs could not be read:', error.message)
    return
  } finally {
    if (arrived === newer) arrived = null
  }
  const present = new Set([...summaries.map(({ id }) => id), ...newer.keys()])
  for (const id of known.keys()) if (!present.has(id)) known.delete(id)
  summaries.forEach((summary) => take(newer.get(summary.id) ?? summary))
  await Promise.all([...watchers.keys()].filter((id) => known.has(id) && wanted(id)).map(fetchWhole))
  mark(null)
}

/** The runs, newest first; a result that was used again is as new as that. */
export function list() {
  const age = (run) => run.shown ?? run.started ?? Infinity
  return [...known.values()].sort((a, b) => age(b) - age(a) || (b.id > a.id ? 1 : -1))
}

/** One run as far as it is known. */
export function get(id) {
  return known.get(id)
}

/** Be told when the list or any summary changes. Returns a function that ends it. */
export function watchList(tell) {
  listWatchers.add(tell)
  return () => listWatchers.delete(tell)
}

/** Be told when one run changes; it is fetched whole first. Returns a function that ends it. */
export function watch(id, tell) {
  const tellers = watchers.get(id) ?? new Set()
  watchers.set(id, tellers.add(tell))
  if (known.get(id)?.whole) mark(id)
  else fetchWhole(id)
  return () => {
    tellers.delete(tell)
    if (!tellers.size) watchers.delete(id)
  }
}

/** Take a finished run off the list. */
export async function remove(id) {
  await server.remove(id)
  known.delete(id)
  mark(null)
}

function takeNews(summary) {
  arrived?.set(summary.id, summary)
  const fetching = early.get(summary.id)
  if (fetching) fetching.summary = summary
  take(summary)
}

function take(summary) {
  const run = known.get(summary.id)
  if (run) applySummary(run, summary)
  else known.set(summary.id, fromSummary(summary))
  mark(summary.id)
}

function takeEvent(id, event) {
  const run = known.get(id)
  if (early.has(id)) early.get(id).events.push(event)
  else if (run?.whole) {
    applyEvent(run, event)
    mark(id)
  }
}

async function fetchWhole(id) {
  if (early.has(id)) return
  const meanwhile = { events: [], summary: null }
  early.set(id, meanwhile)
  try {
    const whole = await server.run(id)
    const run = known.get(id) ?? fromSummary(whole)
    known.set(id, applyWhole(run, whole))
    meanwhile.events.forEach((event) => applyEvent(run, event))
    if (meanwhile.summary) applySummary(run, meanwhile.summary)
  } catch (error) {
    console.warn(`[Musubi Tuner] The run ${id} could not be read:`, error.message)
  } finally {
    early.delete(id)
    mark(id)
  }
}

/** Follow the log of a run while somebody looks at it. Returns a function that ends it. */
export function followLog(id) {
  let waiting = false
  const timer = setInterval(async () => {
    const run = known.get(id)
    if (!run?.whole || waiting || (run.ended && run.logComplete)) return
    waiting = true
    try {
      const ended = Boolean(run.ended)
      const { text, offset } = await server.log(id, run.logEnd)
      if (text) {
        appendLog(run, text, offset)
        mark(id)
      }
      run.logComplete = ended && !text
    } catch {
      run.logComplete = Boolean(run.ended) // gone from the list meanwhile, or the server is away: nothing to add
    }
    waiting = false
  }, LOG_EVERY_MS)
  return () => clearInterval(timer)
}

function mark(id) {
  changed.add(id)
  frame ||= requestAnimationFrame(() => {
    frame = 0
    const ids = [...changed]
    changed.clear()
    for (const one of ids) {
      if (one !== null && known.has(one)) watchers.get(one)?.forEach((tell) => tell(known.get(one)))
    }
    listWatchers.forEach((tell) => tell())
  })
}
