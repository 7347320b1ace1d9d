/**
 * Whether the engine's environment is there, as the server says it; views are told when that changes.
 */

import { listen, server, whenReconnected } from './api.mjs'

let current = { state: 'unknown' }
const watchers = new Set()

/** Begin: ask once and follow the messages. */
export async function followEnvironment() {
  listen('musubi.environment', take)
  whenReconnected(refreshEnvironment)
  await refreshEnvironment()
}

/** Ask again. */
export async function refreshEnvironment() {
  try {
    take(await server.environment())
  } catch (error) {
    take({ state: 'unknown', message: error.message })
  }
}

/**
 * As it was said last: `{state, detail, stage, done, total, message, hint, log_line}`. `detail` is finer than `state`:
 * an "outdated" engine is ready, an "incomplete" one is missing.
 */
export function environment() {
  return current
}

/** Be told of every change. Returns a function that ends it. */
export function watchEnvironment(tell) {
  watchers.add(tell)
  return () => watchers.delete(tell)
}

function take(state) {
  current = state
  watchers.forEach((tell) => tell(current))
}
