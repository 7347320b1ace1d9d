/**
 * The page's entrance: hands ComfyUI our nodes' panel, the sidebar tab, commands and settings.
 *
 * ComfyUI imports every `.js` of the folder as an extension of its own, so this is the only one; the rest is `.mjs`.
 */

import { app } from '../../../scripts/app.js'
import { foldAdvanced, followRenderer } from './advanced.mjs'
import { server } from './api.mjs'
import { useStyle } from './dom.mjs'
import { followEnvironment } from './environment.mjs'
import { isOurs } from './graph.mjs'
import { JobsTab, showRun } from './jobs_tab.mjs'
import { followFiles, showAgain } from './last_shown.mjs'
import { tellEnds, tellRefusals } from './notify.mjs'
import { titleOf } from './run_panel.mjs'
import { addRunWidget } from './run_widget.mjs'
import * as runs from './runs.mjs'
import { comfySettings } from './settings.mjs'
import { followMaking, openSetup } from './setup_dialog.mjs'
import { loadTexts, said, text } from './texts.mjs'

const TAB = 'musubi-jobs'

useStyle('../css/musubi.css')

let tab = null // the sidebar tab while it is open

const actions = { onopen: openRun, onsetup: openSetup }

function openRun(run) {
  showRun(run.id)
  if (!tab) toggleTab()
}

function toggleTab() {
  app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`)
}

async function loadWorkflow(run) {
  try {
    await app.loadGraphData(await server.workflow(run.id), true, true, titleOf(run))
  } catch (error) {
    toast('error', text('jobs.no_workflow'), said(error.message))
  }
}

async function removeRun(run) {
  try {
    await runs.remove(run.id)
  } catch (error) {
    toast('error', text('jobs.not_removed'), said(error.message))
  }
}

function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 8000 })
}

app.registerExtension({
  name: 'MusubiTuner',
  settings: comfySettings(openSetup),
  commands: [
    { id: 'MusubiTuner.Setup', label: 'Set up Musubi Tuner', icon: 'pi pi-wrench', function: openSetup },
    { id: 'MusubiTuner.Jobs', label: 'Show Musubi jobs', icon: 'pi pi-chart-line', function: toggleTab }
  ],
  menuCommands: [{ path: ['Extensions', 'Musubi Tuner'], commands: ['MusubiTuner.Setup', 'MusubiTuner.Jobs'] }],

  /** Before any graph is loaded: panels need their texts. */
  async init() {
    await loadTexts(app.extensionManager.setting.get('Comfy.Locale'))
  },

  async setup() {
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: 'pi pi-chart-line',
      title: text('jobs.tab'),
      tooltip: text('jobs.title'),
      type: 'custom',
      render: (container) => {
        tab?.destroy()
        tab = new JobsTab({ onload: loadWorkflow, onremove: removeRun, onsetup: openSetup })
        container.replaceChildren(tab.element)
      },
      destroy: () => {
        tab?.destroy()
        tab = null
      }
    })
    followRenderer(app)
    followMaking()
    followFiles(app)
    tellEnds(app)
    tellRefusals(app)
    await Promise.all([runs.followRuns(), followEnvironment()])
  },

  afterConfigureGraph() {
    showAgain(app)
  },

  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    foldAdvanced(node, app)
    addRunWidget(node, app, actions) // after all other widgets
  }
})
