/**
 * A message in the corner when a training or a video has ended, for whoever wants it (a setting), and when a graph that
 * was queued here cannot run: ComfyUI's own words name only the input.
 *
 * A failure that ComfyUI itself shows, in the window that queued the prompt, is not told a second time.
 */

import { listen } from './api.mjs'
import { withoutFolders } from './format.mjs'
import { nodeAt, rootOf } from './graph.mjs'
import { titleOf } from './run_panel.mjs'
import { isLive } from './run_state.mjs'
import * as runs from './runs.mjs'
import { said, text } from './texts.mjs'

const TOLD = new Set(['train', 'generate'])
const SHOWN_MS = 8000
const REFUSAL_SHOWN_MS = 20000
const COMFYUI_TELLS_MS = 1500

/** Begin to watch for ends. `app` is ComfyUI's. */
export function tellEnds(app) {
  const live = new Set()
  const told = new Set() // prompts of which ComfyUI has shown the failure
  const toast = (severity, summary, detail = '') =>
    app.extensionManager.toast.add({ severity, summary, detail, life: SHOWN_MS })
  listen('execution_error', ({ prompt_id: prompt }) => told.add(prompt))
  runs.watchList(() => {
    for (const run of runs.list()) {
      if (isLive(run)) live.add(run.id)
      else if (live.delete(run.id) && TOLD.has(run.verb) && app.extensionManager.setting.get('MusubiTuner.Notify'))
        tell(run)
    }
  })

  function tell(run) {
    const words = text(`notify.${run.state}`, { title: titleOf(run) })
    if (run.state === 'done') toast('success', words)
    else if (run.state === 'stopped') toast('info', words, withoutFolders(said(run.message)))
    else setTimeout(() => told.has(run.prompt) || toast('error', words, said(run.error?.message)), COMFYUI_TELLS_MS)
  }
}

/** Begin to tell why a node of the graph that was queued here cannot run. */
export function tellRefusals(app) {
  listen('musubi.refused', ({ node, message }) => {
    const summary = nodeAt(rootOf(app), node)?.title ?? 'Musubi Tuner'
    app.extensionManager.toast.add({ severity: 'error', summary, detail: said(message), life: REFUSAL_SHOWN_MS })
  })
}
