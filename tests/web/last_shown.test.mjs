import assert from 'node:assert/strict'
import { test } from 'node:test'

import { api } from './comfyui_stub.mjs'

const element = () => ({
  textContent: '',
  setAttribute() {},
  append(...parts) {
    this.textContent += parts.map((part) => part.textContent ?? part).join('')
  }
})
globalThis.document = { createElement: element }
const { showAgain } = await import('../../web/js/last_shown.mjs')
const { loadTexts } = await import('../../web/js/texts.mjs')

const OUTPUT = { images: [{ filename: 'cat_00001_.mp4', subfolder: 'video', type: 'output' }], animated: [true] }
const VIDEO = 'MusubiTuner_VideoOutput'
const shown = (node, className = VIDEO, gone = []) => ({ workflow: 'w', node, class: className, output: OUTPUT, gone })

const again = (output) => ({ node: '7', display_node: '7', output, again: true })

/** ComfyUI's page on a graph of one node, 7. */
function page(id = 'w') {
  const node = {
    comfyClass: VIDEO,
    widgets: [],
    size: [200, 100],
    computeSize: () => [200, 164],
    setSize(size) {
      this.size = size
    },
    addDOMWidget(name, type, element, options) {
      const widget = { element, options }
      this.widgets.push(widget)
      return widget
    },
    removeWidget(gone) {
      this.widgets = this.widgets.filter((widget) => widget !== gone)
    }
  }
  return { extensionManager: { setting: { get: () => false } }, rootGraph: { id, getNodeById: (number) => (String(number) === '7' ? node : null) } }
}

/** What ComfyUI's page is told while `act` goes on. */
async function told(act) {
  const found = []
  const take = ({ detail }) => found.push(detail)
  api.addEventListener('executed', take)
  await act()
  api.removeEventListener('executed', take)
  return found
}

test('a node that is in the graph shows again what it showed', async () => {
  api.answers['/musubi/shown?workflow=w'] = { shown: [shown('7'), shown('8')] }
  assert.deepEqual(await told(() => showAgain(page())), [again(OUTPUT)])
})

test('a node of another class that has the number now is left alone', async () => {
  api.answers['/musubi/shown?workflow=w'] = { shown: [shown('7', 'SaveVideo')] }
  assert.deepEqual(await told(() => showAgain(page())), [])
})

test('an answer that comes when another graph is open is left alone', async () => {
  const app = page()
  api.answers['/musubi/shown?workflow=w'] = () => {
    app.rootGraph.id = 'other'
    return { shown: [shown('7')] }
  }
  assert.deepEqual(await told(() => showAgain(app)), [])
})

test('a server without the route is no error', async () => {
  assert.deepEqual(await told(() => showAgain(page('unknown'))), [])
})

test('a file that is gone is named in its place until it is back', async () => {
  api.answers['/i18n'] = { en: { musubi: { shown: { gone: '{files} is gone.' } } } }
  await loadTexts('en')
  const app = page()
  const node = app.rootGraph.getNodeById('7')
  const look = (more) => told(() => showAgain(app, { onlyNews: true, ...more }))
  const there = { shown: [shown('7')] }
  const gone = { shown: [shown('7', VIDEO, ['video/cat_00001_.mp4'])] }
  api.answers['/musubi/shown?workflow=w'] = there
  assert.deepEqual(await look(), [], 'that is no news')
  api.answers['/musubi/shown?workflow=w'] = gone
  assert.deepEqual(await look(), [], 'what plays on stays')
  assert.equal(node.widgets.length, 1)
  assert.equal(node.widgets[0].element.textContent, 'video/cat_00001_.mp4 is gone.')
  assert.equal(node.widgets[0].serialize, false, 'a workflow keeps nothing of it')
  assert.deepEqual(await look({ anew: true }), [again({})])
  assert.equal(node.widgets.length, 1)
  api.answers['/musubi/shown?workflow=w'] = there
  assert.deepEqual(await look(), [again(OUTPUT)])
  assert.deepEqual(node.widgets, [])
})
