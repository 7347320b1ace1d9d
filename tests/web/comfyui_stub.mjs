/**
 * Stands for ComfyUI's page in tests without a browser: `import './comfyui_stub.mjs'` before a script that needs it.
 *
 * `api.answers` maps a path to what the server says; a function is called, so that it may take its time.
 */

import { register } from 'node:module'

export const api = Object.assign(new EventTarget(), {
  answers: {},
  apiURL: (path) => path,
  async fetchApi(path) {
    const answer = api.answers[path]
    const body = typeof answer === 'function' ? await answer() : answer
    return { ok: body !== undefined, status: 404, statusText: 'Not Found', json: async () => structuredClone(body) }
  },
  /** A message of the server. */
  say: (message, detail) => api.dispatchEvent(new CustomEvent(message, { detail }))
})

globalThis.musubiTestApi = api
globalThis.requestAnimationFrame = (draw) => setTimeout(draw)
const every = globalThis.setInterval
globalThis.setInterval = (...when) => every(...when).unref() // a page's clock must not keep a test from its end

const hooks = `export const resolve = (name, context, next) => name.endsWith('/scripts/api.js')
  ? { url: 'data:text/javascript,export const api = globalThis.musubiTestApi', shortCircuit: true }
  : next(name, context)`
register(`data:text/javascript,${encodeURIComponent(hooks)}`)
