/**
 * The run panel on a node: a DOM widget, so that it works in both of ComfyUI's renderers.
 *
 * It is the last widget and is not saved with the workflow. It follows the newest run of its node; a monitor node
 * follows the newest run of all. A node that is gone stops following.
 */

import { isClassic } from './advanced.mjs'
import { environment, watchEnvironment } from './environment.mjs'
import { rootOf, runOf, taskOf } from './graph.mjs'
import { RunPanel } from './run_panel.mjs'
import * as runs from './runs.mjs'

const WIDTH = { train: 460, newest: 460, machine: 340 }
const HEIGHT = { train: [380, 1400], newest: [380, 1400], generate: [340, 1200], machine: [120, 600] }
const PLAIN = [230, 900] // tasks that have a log, and little else

/** Put a panel on a node that runs something. `app` is ComfyUI's; `actions` are what its buttons do. */
export function addRunWidget(node, app, actions) {
  const task = taskOf(node.comfyClass)
  if (!task) return
  const panel = new RunPanel({ verb: task === 'newest' || task === 'machine' ? 'train' : task, ...actions })
  panel.element.dataset.task = task
  const [low, high] = HEIGHT[task] ?? PLAIN
  panel.element.style.setProperty('--musubi-least-height', `${low - 20}px`)
  const widget = node.addDOMWidget('musubi_run', 'musubi_run', panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => low,
    getMaxHeight: () => high,
    getValue: () => '',
    setValue: () => {}
  })
  widget.serialize = false
  const height = isClassic(app) ? Math.max(node.size[1], node.computeSize()[1]) : node.size[1]
  node.setSize([Math.max(node.size[0], WIDTH[task] ?? 400), height])
  handWheelToCanvas(panel.element, app)
  follow(node, task, panel, app)
}

/** Keep the panel showing the node's newest run. */
function follow(node, task, panel, app) {
  let id = null
  let stop = null
  const look = () => {
    const list = runs.list()
    const run = task === 'newest' || task === 'machine' ? list[0] : runOf(node, list, rootOf(app), task)
    if (run && run.id === id) return
    stop?.()
    id = run?.id ?? null
    stop = id ? runs.watch(id, (whole) => panel.update(whole)) : null
    panel.update(run ?? null, environment())
  }
  const ends = [runs.watchList(look), watchEnvironment(() => id === null && panel.update(null, environment()))]
  const removed = node.onRemoved
  node.onRemoved = function (...parameters) {
    ends.forEach((end) => end())
    stop?.()
    panel.destroy()
    return removed?.apply(this, parameters)
  }
  look()
  setTimeout(look) // a node that is being loaded gets its number and graph after it was made
}

/**
 * In the classic renderer a DOM widget keeps the wheel and the middle button from the canvas; hand them on, unless the
 * person is inside something that scrolls. The newer renderer does that itself.
 */
function handWheelToCanvas(element, app) {
  const classic = () => !element.closest('[data-node-id]')
  element.addEventListener(
    'wheel',
    (event) => {
      const scrolls = event.target.closest?.('[data-capture-wheel="true"]')
      if (!classic() || (scrolls && scrolls.contains(document.activeElement))) return
      event.preventDefault()
      app.canvas.processMouseWheel(event)
    },
    { passive: false }
  )
  const middle = (event) => classic() && (event.button === 1 || event.buttons & 4)
  element.addEventListener('pointerdown', (event) => middle(event) && app.canvas.processMouseDown(event))
  element.addEventListener('pointermove', (event) => middle(event) && app.canvas.processMouseMove(event))
  element.addEventListener('pointerup', (event) => middle(event) && app.canvas.processMouseUp(event))
}
