/**
 * Everything about one run in one panel: state, progress, buttons, curve, samples, files, log, machine.
 *
 * The same panel sits on a node and in the sidebar; `update` draws what changed. Knows nothing of either place.
 */

import { server } from './api.mjs'
import { Chart } from './chart.mjs'
import { button, copyText, icon, make, setText, show } from './dom.mjs'
import { files } from './files.mjs'
import { duration, share, speed, withoutFolders } from './format.mjs'
import { LogView } from './log.mjs'
import { planView } from './plan.mjs'
import { Resources } from './resources.mjs'
import { elapsed, isElsewhere, isLive } from './run_state.mjs'
import { followLog } from './runs.mjs'
import { Samples } from './samples.mjs'
import { doingNow, said, text, textOr, unitOf } from './texts.mjs'

const SYMBOLS = {
  waiting: 'clock',
  running: 'spin pi-spinner',
  stopping: 'spin pi-spinner',
  done: 'check-circle',
  stopped: 'stop-circle',
  failed: 'times-circle'
}
const REALLY_MS = 4000
const SAID_MS = 5000

/** Which tabs a run has, the first one in front. */
function tabsOf(verb) {
  if (verb === 'train') return ['curve', 'samples', 'files', 'log']
  return verb === 'generate' ? ['samples', 'files', 'log'] : ['log', 'files']
}

/** "Training · Wan": what a run is, in the reader's language. */
export function titleOf(run) {
  const verb = textOr(`verb.${run.verb.replaceAll(/[- ]/g, '_')}`, run.title || run.verb)
  const family = run.family ? textOr(`family.${run.family.replaceAll('-', '_')}`, run.family) : ''
  return family ? `${verb} · ${family}` : verb
}

/** Who has the run under way, where that is not this server. */
function ownerOf({ elsewhere }) {
  if (!elsewhere) return ''
  return text(elsewhere.process === undefined ? 'run.still_saving' : 'run.elsewhere', elsewhere)
}

/** The state as a coloured word with a symbol. */
export function stateBadge(run) {
  const state = isElsewhere(run) ? 'elsewhere' : run.reused && run.state === 'done' ? 'reused' : run.state
  return make(
    'span',
    { class: `musubi-badge ${run.state}` },
    icon(state === 'reused' ? 'history' : SYMBOLS[run.state]),
    text(`state.${state}`)
  )
}

export class RunPanel {
  /** `onopen(run)`: what the button beside the title does, null for no button. `verb`: which tabs to begin with. */
  constructor({ verb = 'train', onopen = null, onsetup = null } = {}) {
    this.run = null
    this.onsetup = onsetup
    this.badge = make('span', {})
    this.title = make('span', { class: 'musubi-title' })
    this.open =
      onopen &&
      button({ symbol: 'external-link', label: text('run.open'), kind: 'quiet', onclick: () => onopen(this.run) })
    this.bar = make('div', { class: 'musubi-fill' })
    this.progress = make(
      'div',
      {
        class: 'musubi-progress',
        role: 'progressbar',
        'aria-valuemin': '0',
        'aria-valuemax': '100',
        'aria-label': text('run.progress')
      },
      this.bar
    )
    this.facts = make('div', { class: 'musubi-facts' })
    this.problem = make('div', { class: 'musubi-problem', role: 'alert', hidden: true })
    this.owner = make('div', { class: 'musubi-advice', hidden: true })
    this.said = make('div', { class: 'musubi-said', role: 'status' })
    this.buttons = make('div', { class: 'musubi-bar' })
    this.plan = planView()
    this.resources = new Resources()
    this.tabs = make('div', { class: 'musubi-tabs', role: 'tablist' })
    this.pages = make('div', { class: 'musubi-pages' })
    this.idle = make('div', { class: 'musubi-idle' })
    this.body = make(
      'div',
      { class: 'musubi-body' },
      this.progress,
      this.facts,
      this.plan.element,
      this.problem,
      this.owner,
      this.buttons,
      this.said,
      this.tabs,
      this.pages,
      this.resources.element
    )
    this.element = make(
      'div',
      { class: 'musubi musubi-panel' },
      make('div', { class: 'musubi-head' }, this.badge, this.title, this.open),
      this.body,
      this.idle
    )
    this.views = {}
    this.verb = ''
    this._makeTabs(verb)
    this._clock = setInterval(() => this.run && isLive(this.run) && this._drawFacts(), 1000)
  }

  destroy() {
    clearInterval(this._clock)
    this._stopLog?.()
    this.views.curve?.destroy()
  }

  /** Show a run; null: there is none yet, and `environment` says whether there could be one. */
  update(run, environment = null) {
    if (run?.id !== this.run?.id) {
      this._stopLog?.()
      this._stopLog = null
      this.said.textContent = ''
      this.resources.clear()
    }
    this.run = run
    show(this.body, Boolean(run))
    show(this.idle, !run)
    if (this.open) show(this.open, Boolean(run))
    if (!run) {
      this._drawIdle(environment)
      return
    }
    if (run.verb !== this.verb) this._makeTabs(run.verb)
    this._drawHead()
    this._drawFacts()
    this._drawProblem()
    this._drawButtons()
    this.plan.update(run)
    this.resources.update(run.resources)
    this._drawPage()
  }

  // --------------------------------------------------------------------------------------------------------- tabs

  _makeTabs(verb) {
    this.verb = verb
    this.views.curve?.destroy()
    this.views = {}
    const names = tabsOf(verb)
    const tab = (name) =>
      make(
        'button',
        { type: 'button', role: 'tab', class: 'musubi-tab', 'data-tab': name, onclick: () => this.choose(name) },
        text(`tab.${name}`)
      )
    this.tabs.replaceChildren(...names.map(tab))
    this.tabs.onkeydown = (event) => this._tabKey(event, names)
    this.choose(names[0])
  }

  /** Bring a tab to the front. */
  choose(name) {
    this.tab = name
    for (const tab of this.tabs.children) {
      const chosen = tab.dataset.tab === name
      tab.setAttribute('aria-selected', String(chosen))
      tab.tabIndex = chosen ? 0 : -1
    }
    this.views[name] ??= {
      curve: () => new Chart(),
      samples: () => new Samples(),
      log: () => new LogView(),
      files: () => files()
    }[name]()
    this.pages.replaceChildren(this.views[name].element)
    this._drawPage()
  }

  _tabKey(event, names) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    if (!step) return
    event.stopPropagation()
    const next = names[(names.indexOf(this.tab) + step + names.length) % names.length]
    this.choose(next)
    this.tabs.querySelector(`[data-tab="${next}"]`).focus()
  }

  _drawPage() {
    if (!this.run) return
    if (this.tab === 'log') this._stopLog ??= followLog(this.run.id)
    else {
      this._stopLog?.()
      this._stopLog = null
    }
    const view = this.views[this.tab]
    if (this.tab === 'curve') view.update(this.run.metrics)
    else if (this.tab === 'log') view.update(this.run.log)
    else view.update(this.run)
  }

  // ------------------------------------------------------------------------------------------------------ drawing

  _drawIdle(environment) {
    this.badge.replaceChildren(make('span', { class: 'musubi-badge idle' }, text('state.idle')))
    setText(this.title, '')
    const missing = environment && environment.state !== 'ready'
    if (this.idle.dataset.drawn === String(missing)) return
    this.idle.dataset.drawn = String(missing)
    this.idle.replaceChildren(
      make('p', {}, text(missing ? 'idle.missing' : 'idle.ready')),
      ...(missing && this.onsetup
        ? [button({ symbol: 'download', text: text('setup.open'), kind: 'primary', onclick: this.onsetup })]
        : [])
    )
  }

  _drawHead() {
    const key = `${this.run.state} ${this.run.reused} ${isElsewhere(this.run)}`
    if (this.badge.dataset.drawn !== key) {
      this.badge.dataset.drawn = key
      this.badge.replaceChildren(stateBadge(this.run))
    }
    setText(this.title, titleOf(this.run))
  }

  _drawFacts() {
    const { run } = this
    const live = isLive(run)
    const done = share(run.progress)
    this.progress.classList.toggle('unknown', live && done === null)
    this.progress.dataset.state = run.state
    this.bar.style.width = `${(run.state === 'done' ? 1 : (done ?? 0)) * 100}%`
    this.progress.setAttribute('aria-valuenow', String(Math.round((done ?? 0) * 100)))
    const facts = []
    const { progress } = run
    const unit = unitOf(progress?.unit)
    if (live) facts.push(doingNow(run))
    if (progress && (live || run.state !== 'done')) {
      facts.push(`${progress.done}${progress.total ? ` / ${progress.total}` : ''} ${unit}`)
    }
    if (live && progress) {
      if (progress.rate) facts.push(speed(progress.rate, unit))
      if (Number.isFinite(progress.eta_s)) facts.push(text('run.left', { time: duration(progress.eta_s) }))
    }
    if (run.started) facts.push(text(live ? 'run.since' : 'run.took', { time: duration(elapsed(run)) }))
    if (run.state === 'done') facts.push(run.reused ? text('run.reused') : withoutFolders(said(run.message)))
    setText(this.facts, facts.filter(Boolean).join('  ·  '))
  }

  _drawProblem() {
    const { error, badStep, state, message } = this.run
    const kind = error ? 'error' : Number.isFinite(badStep) ? 'warning' : ''
    const key = JSON.stringify([error, badStep, message])
    show(this.problem, Boolean(kind) || state === 'stopped')
    if (this.problem.dataset.drawn === key) return
    this.problem.dataset.drawn = key
    this.problem.className = `musubi-problem ${kind}`
    if (error) {
      this.problem.replaceChildren(
        make('b', {}, textOr(`error.${error.kind}`, text('error.bug'))),
        make('div', {}, said(error.message)),
        error.hint ? make('div', { class: 'musubi-advice' }, said(error.hint)) : '',
        make(
          'div',
          { class: 'musubi-bar' },
          button({ symbol: 'copy', text: text('run.copy_report'), onclick: () => copyText(report(this.run)) }),
          button({ symbol: 'align-left', text: text('run.show_log'), onclick: () => this.choose('log') }),
          error.kind === 'environment' && this.onsetup
            ? button({ symbol: 'wrench', text: text('setup.open'), kind: 'primary', onclick: this.onsetup })
            : null
        )
      )
    } else if (kind) {
      this.problem.replaceChildren(
        make('b', {}, text('error.not_finite', { step: badStep })),
        make('div', {}, text('error.not_finite_hint'))
      )
    } else {
      this.problem.textContent = withoutFolders(said(message)) || text('run.stopped')
    }
  }

  _drawButtons() {
    const { run } = this
    const key = `${run.id} ${run.state} ${JSON.stringify(run.elsewhere)}`
    if (this.buttons.dataset.drawn === key) return
    this.buttons.dataset.drawn = key
    setText(this.owner, ownerOf(run))
    show(this.owner, isElsewhere(run))
    const ours = isLive(run) && !isElsewhere(run)
    show(this.buttons, ours)
    if (!ours) return
    const busy = run.state !== 'running'
    const command = (name, symbol, kind = '') => {
      const made = button({
        symbol,
        text: text(`run.${name}`),
        label: text(`run.${name}_help`),
        kind,
        onclick: () => this._command(name)
      })
      made.disabled = busy
      return made
    }
    const shown =
      run.verb === 'train'
        ? [command('stop', 'stop-circle', 'primary'), command('save', 'save'), command('sample', 'video')]
        : [command('stop', 'stop-circle')]
    this.buttons.replaceChildren(...shown, this._cancelButton())
  }

  _cancelButton() {
    let sure = 0
    const made = button({
      symbol: 'times',
      text: text('run.cancel'),
      label: text('run.cancel_help'),
      kind: 'quiet danger',
      onclick: () => {
        if (Date.now() - sure < REALLY_MS) {
          this._command('cancel')
          return
        }
        sure = Date.now()
        const word = made.querySelector('span')
        word.textContent = text('run.really')
        setTimeout(() => (word.textContent = text('run.cancel')), REALLY_MS)
      }
    })
    return made
  }

  async _command(name) {
    try {
      await server.command(this.run.id, name)
      this._say(text(`run.${name}_asked`))
    } catch (error) {
      this._say(said(`${error.message} ${error.hint ?? ''}`))
    }
  }

  _say(words) {
    this.said.textContent = words
    clearTimeout(this._saidTimer)
    this._saidTimer = setTimeout(() => (this.said.textContent = ''), SAID_MS)
  }
}

/** What somebody who is asked for help needs to see. */
export function report(run) {
  const { error } = run
  return [
    `Musubi Tuner: ${run.verb} ${run.family ?? ''}`.trim(),
    `run ${run.id}, ${run.state}`,
    error ? `${error.kind}: ${error.message}\nhint: ${error.hint}` : '',
    '',
    run.log.slice(-6000)
  ].join('\n')
}
