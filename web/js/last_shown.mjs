/**
 * What a node showed last is shown again when its graph is opened: ComfyUI itself forgets it with the page, and leaves a
 * large empty node.
 *
 * ComfyUI is told once more what it was told when the node ran, so that each renderer shows it in its own way.
 */

import { server, tellAgain } from './api.mjs'
import { nodeAt, rootOf } from './graph.mjs'

/** Have the nodes of the graph that is open show what they showed last. `app` is ComfyUI's. */
export async function showAgain(app) {
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
  for (const { node, class: className, output } of entries) {
    if (nodeAt(root, node)?.comfyClass === className) tellAgain('executed', { node, display_node: node, output })
  }
  app.canvas?.setDirty(true, true) // the classic renderer looks for outputs when it draws
}
