/**
 * The dialog that makes and mends the engine's environment: what is there, one button, progress, what went wrong.
 *
 * Closing it stops nothing: the server goes on, and the dialog shows where it is when it is opened again.
 */

import { server } from './api.mjs'
import { demoModels } from './demo_models.mjs'
import { button, copyText, icon, make, setText, show } from './dom.mjs'
import { environment, refreshEnvironment, watchEnvironment } from './environment.mjs'
import { settingField } from './settings.mjs'
import { said, text } from './texts.mjs'

const SYMBOLS = {
  unknown: 'question-circle',
  missing: 'download',
  making: 'spin pi-spinner',
  ready: 'check-circle',
  outdated: 'arrow-circle-up',
  incomplete: 'download',
  broken: 'exclamation-triangle'
}
const DETAILS = ['outdated', 'incomplete'] // what the dialog tells apart beyond ready and missing
const LINES = 400

let dialog = null
let lines = []

/** Keep what the environment's making says, also while the dialog is closed. */
export function followMaking() {
  watchEnvironment(({ log_line: line }) => {
    if (line && line !== lines.at(-1)) lines = [...lines, line].slice(-LINES)
  })
}

/** Open the dialog, or bring it to the front. */
export function openSetup() {
  if (!dialog) {
    dialog = new SetupDialog()
    document.body.append(dialog.element)
    dialog.element.addEventListener('close', () => {
      dialog.destroy()
      dialog = null
    })
  }
  if (!dialog.element.open) dialog.element.showModal()
  refreshEnvironment()
}

class SetupDialog {
  constructor() {
    this.symbol = make('span', { class: 'musubi-symbol' })
    this.heading = make('b', {})
    this.words = make('div', { class: 'musubi-muted' })
    this.bar = make('div', { class: 'musubi-fill' })
    this.progress = make(
      'div',
      { class: 'musubi-progress', role: 'progressbar', 'aria-label': text('run.progress') },
      this.bar
    )
    this.stage = make('div', { class: 'musubi-facts', 'aria-live': 'polite' })
    this.problem = make('div', { class: 'musubi-problem error', role: 'alert', hidden: true })
    this.buttons = make('div', { class: 'musubi-bar' })
    this.facts = make('dl', { class: 'musubi-facts-list' })
    this.log = make('pre', { class: 'musubi-lines', tabindex: '0' })
    this.logBox = make('details', {}, make('summary', {}, text('setup.log')), this.log)
    this.demo = demoModels()
    const settings = ['home', 'gpu'].map((name) =>
      make('label', {}, make('span', {}, text(`settings.${name}`)), settingField(name))
    )
    this.element = make(
      'dialog',
      { class: 'musubi musubi-dialog', 'aria-labelledby': 'musubi-setup-title' },
      make(
        'div',
        { class: 'musubi-head' },
        make('h2', { id: 'musubi-setup-title' }, text('setup.title')),
        button({ symbol: 'times', label: text('setup.close'), kind: 'quiet', onclick: () => this.element.close() })
      ),
      make('div', { class: 'musubi-status' }, this.symbol, make('div', {}, this.heading, this.words)),
      this.progress,
      this.stage,
      this.problem,
      this.buttons,
      make('details', { class: 'musubi-where' }, make('summary', {}, text('setup.where')), this.facts, ...settings),
      this.logBox,
      this.demo.element
    )
    this.element.addEventListener('keydown', (event) => event.stopPropagation()) // ComfyUI's own keys
    this._end = watchEnvironment((state) => this.update(state))
    this.update(environment())
  }

  destroy() {
    this._end()
    this.demo.destroy()
    this.element.remove()
  }

  update(now) {
    const state = DETAILS.includes(now.detail) ? now.detail : now.state
    this.element.dataset.state = state
    this.symbol.replaceChildren(icon(SYMBOLS[state] ?? SYMBOLS.unknown))
    setText(this.heading, text(`setup.state_${state}`))
    setText(this.words, text(`setup.words_${state}`))
    const making = state === 'making'
    show(this.progress, making)
    show(this.stage, making)
    const share = now.total ? Math.min(1, now.done / now.total) : 0
    this.bar.style.width = `${share * 100}%`
    this.progress.setAttribute('aria-valuenow', String(Math.round(share * 100)))
    setText(this.stage, [now.stage, now.message].filter(Boolean).join('  ·  '))
    this._drawProblem(state, now)
    this._drawButtons(state)
    this._drawFacts(now)
    this._drawLog()
    this.demo.update(now.state === 'ready')
  }

  _drawProblem(state, { message, hint }) {
    const wrong = state !== 'ready' && state !== 'making' && Boolean(message)
    show(this.problem, wrong)
    if (!wrong) return
    this.problem.replaceChildren(
      make('div', {}, said(message)),
      hint ? make('div', { class: 'musubi-advice' }, said(hint)) : '',
      button({
        symbol: 'copy',
        text: text('setup.copy_report'),
        onclick: () => copyText([message, hint, '', ...lines].join('\n'))
      })
    )
  }

  _drawButtons(state) {
    if (this.buttons.dataset.drawn === state) return
    this.buttons.dataset.drawn = state
    const act = (action, symbol, kind = '', word = action) =>
      button({ symbol, text: text(`setup.${word}`), kind, onclick: () => this._act(action) })
    const shown = {
      missing: [act('create', 'download', 'primary')],
      broken: [act('repair', 'wrench', 'primary')],
      making: [act('cancel', 'times')],
      ready: [act('repair', 'wrench')],
      outdated: [act('create', 'download', 'primary', 'update')],
      incomplete: [act('create', 'download', 'primary', 'go_on')]
    }[state] ?? [button({ symbol: 'refresh', text: text('setup.again'), onclick: refreshEnvironment })]
    this.buttons.replaceChildren(...shown)
  }

  async _act(action) {
    try {
      await server.changeEnvironment(action)
      await refreshEnvironment()
    } catch (error) {
      show(this.problem, true)
      this.problem.replaceChildren(make('div', {}, said(error.message)), make('div', { class: 'musubi-advice' }, said(error.hint)))
    }
  }

  _drawFacts({ home, python, torch, log }) {
    const rows = Object.entries({ home, python, torch, log }).filter(([, value]) => value)
    this.facts.replaceChildren(
      ...rows.flatMap(([name, value]) => [
        make('dt', {}, text(`setup.fact_${name}`)),
        make('dd', {}, make('code', {}, value))
      ])
    )
  }

  _drawLog() {
    show(this.logBox, lines.length > 0)
    const atTheEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 24
    setText(this.log, lines.join('\n'))
    if (atTheEnd) this.log.scrollTop = this.log.scrollHeight
  }
}
