/**
 * Rare settings of our nodes are folded away in the classic renderer too, with a button that shows them.
 *
 * ComfyUI's newer renderer folds what a node marks as advanced; the classic one shows all of it, which makes a node of
 * fifty settings longer than the screen. The state is the node's own `showAdvanced`, which ComfyUI saves.
 */

import { text } from './texts.mjs'

const RENDERER = 'Comfy.VueNodes.Enabled'
const folded = new Set()

/** Whether nodes are drawn by the classic renderer. There a node's size is ours to set; the newer one measures. */
export function isClassic(app) {
  return !app.extensionManager.setting.get(RENDERER)
}

/** Fold a node's rare settings away. `app` is ComfyUI's. */
export function foldAdvanced(node, app) {
  if (!node.widgets?.some(isAdvanced)) return
  const toggle = node.addWidget(
    'button',
    'musubi_advanced',
    null,
    () => {
      node.showAdvanced = !node.showAdvanced
      apply(node, app, toggle)
    },
    { serialize: false }
  )
  toggle.serialize = false
  folded.add({ node, toggle })
  apply(node, app, toggle)
  const { onConfigure, onRemoved } = node
  node.onConfigure = function (saved) {
    onConfigure?.apply(this, arguments)
    this.showAdvanced = saved.showAdvanced
    apply(this, app, toggle, saved.size)
  }
  node.onRemoved = function () {
    for (const entry of folded) if (entry.node === this) folded.delete(entry)
    onRemoved?.apply(this, arguments)
  }
}

/** Draw all nodes anew when the person changes the renderer. */
export function followRenderer(app) {
  app.ui.settings.addEventListener(`${RENDERER}.change`, () =>
    setTimeout(() => {
      for (const { node, toggle } of folded) apply(node, app, toggle, node.size)
    })
  )
}

function isAdvanced(widget) {
  return Boolean(widget.options?.advanced)
}

function apply(node, app, toggle, size = null) {
  const classic = isClassic(app)
  const rare = node.widgets.filter(isAdvanced)
  for (const widget of rare) widget.hidden = !node.showAdvanced // the newer renderer only measures by it
  toggle.hidden = toggle.options.hidden = !classic // each renderer looks at one of the two
  toggle.label = node.showAdvanced ? text('advanced.fold') : text('advanced.show', { count: rare.length })
  if (!classic) return
  const least = node.computeSize()
  node.setSize(
    size ? [Math.max(size[0], least[0]), Math.max(size[1], least[1])] : [Math.max(node.size[0], least[0]), least[1]]
  )
  node.setDirtyCanvas?.(true, true)
}
