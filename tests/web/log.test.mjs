import assert from 'node:assert/strict'
import { test } from 'node:test'

import './comfyui_stub.mjs'

/** As much of an element as the log needs: every line is 10 pixels high, the window on them 100. */
class Element extends EventTarget {
  children = []
  value = ''
  scrollTop = 0
  clientHeight = 100
  get scrollHeight() {
    return 10 * this.children.length
  }
  setAttribute() {}
  append(...more) {
    this.children.push(...more)
  }
  replaceChildren(...others) {
    this.children = others
    this.scrollTop = 0
  }
}

globalThis.document = { createElement: () => new Element() }
const { LogView } = await import('../../web/js/log.mjs')

const lines = (from, to) => Array.from({ length: to - from }, (_, index) => `line ${from + index}\n`).join('')

test('the log shows its end, and stays where a person reads', () => {
  const view = new LogView()
  view.update(lines(0, 50))
  assert.equal(view.lines.scrollTop, 500)
  view.lines.scrollTop = 200
  view.update(lines(0, 60))
  assert.equal(view.lines.scrollTop, 200)
})

test('it stays there too where all is drawn anew: the oldest lines went, or only hits are shown', () => {
  const view = new LogView()
  view.update(lines(0, 50))
  view.lines.scrollTop = 200
  view.update(lines(5, 60))
  assert.equal(view.lines.scrollTop, 200)
  view.search.value = 'line'
  view.update(lines(5, 70))
  assert.equal(view.lines.scrollTop, 200)
})
