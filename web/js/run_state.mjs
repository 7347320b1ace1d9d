/**
 * What the page knows of a run, and how a message changes it. Pure: no page, no server.
 *
 * A run starts as a summary (the list), becomes whole by one GET, and then follows the events. Series are kept short
 * by dropping every second point of the older half, so the shape of a long curve stays while its end stays exact.
 */

export const LONGEST_SERIES = 4000
export const LONGEST_RESOURCES = 600
export const LONGEST_LOG = 256 * 1024
export const MOST_PREVIEWS = 60
export const LIVE_STATES = new Set(['waiting', 'running', 'stopping'])

/** A run of which only the summary is known. */
export function fromSummary(summary) {
  return {
    ...summary,
    whole: false,
    metrics: {},
    resources: {},
    previews: [],
    artifacts: [],
    plan: null,
    log: '',
    logEnd: 0,
    badStep: null
  }
}

/** Take over a new summary; the series stay. */
export function applySummary(run, summary) {
  return Object.assign(run, summary)
}

/** Take over everything that the server keeps of a run. */
export function applyWhole(run, whole) {
  const { log, metrics, ...rest } = whole
  Object.assign(run, rest, { whole: true, log: log?.text ?? '', logEnd: log?.offset ?? 0, metrics: {}, badStep: null })
  for (const [name, points] of Object.entries(metrics ?? {})) {
    for (const [step, value] of points) addPoint(run, name, step, value)
  }
  return run
}

/** One event of the engine. Steps that are known already are skipped: the answer to the GET had them. */
export function applyEvent(run, event) {
  switch (event.event) {
    case 'metric':
      for (const [name, value] of Object.entries(event.values ?? {})) addPoint(run, name, event.step, value)
      break
    case 'resource':
      addResources(run, event)
      break
    case 'plan':
      run.plan = event
      break
    case 'preview':
      if (!run.previews.some((known) => known.url === event.url)) {
        const others = run.previews.filter((known) => !event.passing || known.path !== event.path)
        run.previews = [...others, event].slice(-MOST_PREVIEWS)
      }
      break
    case 'artifact':
      run.artifacts = [...run.artifacts.filter((known) => known.path !== event.path), event]
      break
  }
  return run
}

/** More text at the end of the log; the oldest lines go when it becomes too long. */
export function appendLog(run, text, end) {
  run.log = tail(run.log + text, LONGEST_LOG)
  run.logEnd = end
}

/** The end of a text, whole lines only. */
export function tail(text, length) {
  if (text.length <= length) return text
  const start = text.length - length
  const newline = text.indexOf('\n', start)
  return text.slice(newline < 0 ? start : newline + 1)
}

function addPoint(run, name, step, value) {
  const number = typeof value === 'number' ? value : Number.NaN // "NaN" and "Infinity" come as words
  if (!Number.isFinite(number)) {
    if (name.startsWith('loss')) run.badStep ??= step
    return
  }
  const series = (run.metrics[name] ??= [])
  if (series.length && series[series.length - 1][0] >= step) return
  series.push([step, number])
  if (series.length > LONGEST_SERIES) run.metrics[name] = thinned(series)
}

function addResources(run, event) {
  const now = event.time ?? Date.now() / 1000
  for (const [name, value] of Object.entries(event.values ?? {})) {
    if (!Number.isFinite(value)) continue
    const series = (run.resources[name] ??= [])
    series.push([now, value])
    if (series.length > LONGEST_RESOURCES) series.shift()
  }
}

/** Every second point of the older half. */
export function thinned(series) {
  const half = series.length >> 1
  return series.filter((_, index) => index >= half || index % 2 === 0)
}

/** Whether the run still goes on. */
export function isLive(run) {
  return LIVE_STATES.has(run.state)
}

/** Whether it goes on in another ComfyUI: it is shown here, and ended and taken off the list there. */
export function isElsewhere(run) {
  return Boolean(run.elsewhere)
}

/** How long it has taken, in seconds; until `now` (epoch seconds) where it goes on. */
export function elapsed(run, now = Date.now() / 1000) {
  return run.started ? (run.ended ?? now) - run.started : Number.NaN
}
