/**
 * What a node showed last is shown again when its graph is opened: ComfyUI itself forgets it with the page, and leaves a
 * large empty node. A file that is gone by then is named in its place.
 *
 * ComfyUI is told once more what it was told when the node ran, so that each renderer shows it in its own way.
 */

import { isClassic } from './advanced.mjs'
import { listen, server, tellAgain } from './api.mjs'
import { make, setText } from './dom.mjs'
import { nodeAt, rootOf } from './graph.mjs'
import { text } from './texts.mjs'

const HEIGHT = 64
const OURS = /^MusubiTuner_/
const notices = new WeakMap() // node → { widget, words }: what says that files of it are gone

/** Begin: files go and come back while the person is elsewhere, and a node may show again what is gone since. */
export function followFiles(app) {
  globalThis.addEventListener('focus', () => showAgain(app, { onlyNews: true }))
  listen('executed', ({ node, display_node: shown, again }) => {
    if (!again && OURS.test(nodeAt(rootOf(app), shown ?? node)?.comfyClass)) showAgain(app, { onlyNews: true, anew: true })
  })
}

/**
 * Have the nodes of the graph that is open show what they showed last, or say that it is gone. `app` is ComfyUI's;
 * `onlyNews`: where that changes anything; what plays on though its file is gone stays then, unless it was shown `anew`.
 */
export async function showAgain(app, { onlyNews = false, anew = !onlyNews } = {}) {
  const workflow = rootOf(app)?.id
  if (!workflow) return
  let entries
  try {
    entries = await server.shown(workflow)
  } catch (error) {
    console.warn('[Musubi Tuner] What the nodes showed last could not be read:', error.message)
    return
  }
  const root = rootOf(app)
  if (root.id !== workflow) return // another graph was opened meanwhile
  for (const { node: path, class: className, output, gone } of entries) {
    const node = nodeAt(root, path)
    if (node?.comfyClass !== className) continue
    const tell = (told) => tellAgain('executed', { node: path, display_node: path, output: told, again: true })
    if (gone.length && anew) tell({}) // an empty box would be all there is to see
    else if (!gone.length && (!onlyNews || notices.has(node))) tell(output)
    sayGone(node, gone, app)
  }
  app.canvas?.setDirty(true, true) // the classic renderer looks for outputs when it draws
}

/** A sentence on the node about these files; none when there are none. */
function sayGone(node, files, app) {
  const known = notices.get(node)
  if (!files.length) {
    if (known) node.removeWidget(known.widget)
    notices.delete(node)
    return
  }
  const sentence = text('shown.gone', { files: files.join(', ') })
  if (known) {
    setText(known.words, sentence)
    return
  }
  const words = make('div', { class: 'musubi-problem warning', role: 'status' }, sentence)
  const widget = node.addDOMWidget('musubi_gone', 'musubi_gone', make('div', { class: 'musubi' }, words), {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
    getValue: () => '',
    setValue: () => {}
  })
  widget.serialize = false
  notices.set(node, { widget, words })
  if (isClassic(app)) node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])])
}
