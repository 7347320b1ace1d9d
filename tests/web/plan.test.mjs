import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

import { api } from './comfyui_stub.mjs'

const { loadTexts } = await import('../../web/js/texts.mjs')
const { planView } = await import('../../web/js/plan.mjs')

const read = (language) =>
  JSON.parse(readFileSync(new URL(`../../locales/${language}/main.json`, import.meta.url), 'utf8'))
api.answers['/i18n'] = { en: read('en'), ja: read('ja') }

/** As much of a page's element as the plan needs: what it holds, and the text in it. */
class Element {
  dataset = {}
  style = {}
  children = []
  constructor(tag) {
    this.tag = tag
  }
  setAttribute() {}
  append(...more) {
    this.children.push(...more)
  }
  replaceChildren(...children) {
    this.children = children
  }
  get textContent() {
    return this.children.map((child) => child.textContent ?? String(child)).join('')
  }
  set textContent(words) {
    this.children = [words]
  }
  all(tag) {
    const inside = this.children.flatMap((child) => child.all?.(tag) ?? [])
    return this.tag === tag ? [this, ...inside] : inside
  }
}
globalThis.document = { createElement: (tag) => new Element(tag) }

const plan = {
  stages: [{ name: 'training step', device_mib: { 'DiT weights': 9000 }, main_mib: {}, needed_mib: 10240 }],
  asked_mib: 10240,
  needed_mib: 10240,
  limit_mib: 16384,
  ram_mib: 4096,
  fits: true,
  options: {},
  scratch_mib: 13312,
  scratch_folder: '/data',
  scratch_free_mib: 102400
}

function shown(changes) {
  const { element, update } = planView()
  update({ plan: { ...plan, ...changes }, resources: {} })
  const [summary] = element.all('summary')
  const rows = element.all('tr').map((row) => row.children.map((cell) => cell.textContent))
  return { summary: summary.textContent, rows }
}

test('a scratch file is told with what its disk has free', async () => {
  await loadTexts('en')
  assert.deepEqual(shown({}).rows.at(-1), ['scratch file on disk', '13.0 GiB', 'of 100.0 GiB free in /data'])
  assert.equal(shown({ scratch_free_mib: null }).rows.at(-1)[2], '/data')
  assert.equal(shown({ scratch_mib: 0, scratch_folder: '' }).rows.at(-1)[0], 'main memory')
})

test('a job that only the disk has no room for does not look like one that the GPU has none for', async () => {
  await loadTexts('en')
  const little = { fits: false, scratch_free_mib: 3072 }
  assert.match(shown(little).summary, /10\.0 GiB of 16\.0 GiB.*not on the disk/)
  assert.match(shown({ ...little, limit_mib: null }).summary, /not on the disk/)
  assert.match(shown({ ...little, limit_mib: 8192 }).summary, /does not fit/)
  assert.match(shown({ fits: false, scratch_free_mib: null }).summary, /does not fit/)
  assert.doesNotMatch(shown({}).summary, /disk|does not fit/)
})

test('on a Japanese page that is Japanese', async () => {
  await loadTexts('ja')
  const { summary, rows } = shown({ fits: false, scratch_free_mib: 3072 })
  assert.match(summary, /ディスクの空きが足りない/)
  assert.deepEqual(rows.at(-1), ['ディスク上の一時ファイル', '13.0 GiB', '空き 3.0 GiB：/data'])
})
