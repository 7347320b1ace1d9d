/**
 * What the page asks of the server and what the server tells it; the only file that knows addresses and messages.
 *
 * Errors come as `ServerError` with a message and a hint, ready to be shown.
 */

import { api } from '../../../scripts/api.js'

/** The server said no, or could not be reached. `hint` says what to do, "" where there is nothing to say. */
export class ServerError extends Error {
  constructor(message, hint = '', status = 0) {
    super(message)
    this.hint = hint
    this.status = status
  }
}

async function ask(path, options = {}) {
  let reply
  try {
    reply = await api.fetchApi(`/musubi${path}`, options)
  } catch (error) {
    throw new ServerError(String(error?.message ?? error))
  }
  const body = await reply.json().catch(() => null)
  if (!reply.ok) {
    const { message, hint } = body?.error ?? {}
    throw new ServerError(message ?? `${reply.status} ${reply.statusText}`, hint ?? '', reply.status)
  }
  return body
}

function post(path, data) {
  return ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(data) })
}

const one = (id) => `/runs/${encodeURIComponent(id)}`

export const server = {
  runs: async () => (await ask('/runs')).runs,
  run: (id) => ask(one(id)),
  log: (id, after) => ask(`${one(id)}/log?after=${after}`),
  workflow: (id) => ask(`${one(id)}/workflow`),
  command: (id, command) => post(`${one(id)}/command`, { command }),
  remove: (id) => ask(one(id), { method: 'DELETE' }),
  shown: async (workflow) => (await ask(`/shown?workflow=${encodeURIComponent(workflow)}`)).shown,
  environment: () => ask('/environment'),
  changeEnvironment: (action) => post('/environment', { action }),
  settings: () => ask('/settings'),
  changeSettings: (changes) => post('/settings', changes),
  makeDemo: () => post('/demo', {})
}

/** The address of a file that the server named, also where ComfyUI is served from a sub-folder. */
export function fileAddress(url) {
  return url.startsWith('/') ? api.apiURL(url.replace(/^\/api(?=\/)/, '')) : url
}

/** Call `tell(data)` for each message of this name. */
export function listen(message, tell) {
  api.addEventListener(message, ({ detail }) => tell(detail))
}

/** Tell this page what the server told the pages that were open then. */
export function tellAgain(message, detail) {
  api.dispatchEvent(new CustomEvent(message, { detail }))
}

/** Call `tell()` when the connection to the server is there again. */
export function whenReconnected(tell) {
  api.addEventListener('reconnected', tell)
}

/** The texts of all packs, by language. */
export async function translations() {
  const reply = await api.fetchApi('/i18n')
  return reply.json()
}
