import assert from 'node:assert/strict'
import { test } from 'node:test'

import { api } from './comfyui_stub.mjs'

const { showAgain } = await import('../../web/js/last_shown.mjs')

const OUTPUT = { images: [{ filename: 'cat_00001_.mp4', subfolder: 'video', type: 'output' }], animated: [true] }
const VIDEO = 'MusubiTuner_VideoOutput'
const shown = (node, className = VIDEO) => ({ workflow: 'w', node, class: className, output: OUTPUT })

/** ComfyUI's page on a graph of one node, 7. */
function page(id = 'w') {
  const node = { comfyClass: VIDEO }
  return { rootGraph: { id, getNodeById: (number) => (String(number) === '7' ? node : null) } }
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
  assert.deepEqual(await told(() => showAgain(page())), [{ node: '7', display_node: '7', output: OUTPUT }])
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
