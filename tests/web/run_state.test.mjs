import assert from 'node:assert/strict'
import { test } from 'node:test'

import {
  LONGEST_RESOURCES,
  LONGEST_SERIES,
  appendLog,
  applyEvent,
  applySummary,
  applyWhole,
  elapsed,
  fromSummary,
  isLive,
  tail
} from '../../web/js/run_state.mjs'

const summary = { id: 'r', verb: 'train', family: 'wan', state: 'running', started: 100, ended: null }
const whole = {
  ...summary,
  metrics: {
    'loss/current': [
      [1, 0.5],
      [2, 0.4]
    ]
  },
  resources: {},
  previews: [],
  artifacts: [],
  log: { text: 'a\n', offset: 2 }
}
const metric = (step, value) => ({ event: 'metric', step, values: { 'loss/current': value } })

test('a plan is kept, the newest one when the engine goes on with less', () => {
  const run = applyWhole(fromSummary(summary), { ...whole, plan: null })
  applyEvent(run, { event: 'plan', needed_mib: 900 })
  applyEvent(run, { event: 'plan', needed_mib: 700 })
  assert.equal(run.plan.needed_mib, 700)
})

test('a preview of something unfinished takes the place of the one before, other pictures stay', () => {
  const run = applyWhole(fromSummary(summary), { ...whole, previews: [{ path: '/a/sheet.png', url: '/sheet' }] })
  for (const v of [1, 2, 2, 3]) {
    applyEvent(run, { event: 'preview', path: '/a/now.webp', url: `/now&v=${v}`, passing: true })
  }
  assert.deepEqual(
    run.previews.map(({ url }) => url),
    ['/sheet', '/now&v=3']
  )
})

test('a new summary leaves the series alone', () => {
  const run = applyWhole(fromSummary(summary), whole)
  applySummary(run, { ...summary, state: 'done', ended: 160 })
  assert.equal(run.metrics['loss/current'].length, 2)
  assert.equal(isLive(run), false)
  assert.equal(elapsed(run), 60)
})

test('an event that the whole run had already is not counted twice', () => {
  const run = applyWhole(fromSummary(summary), whole)
  applyEvent(run, metric(2, 0.4))
  applyEvent(run, metric(3, 0.3))
  assert.deepEqual(run.metrics['loss/current'], [
    [1, 0.5],
    [2, 0.4],
    [3, 0.3]
  ])
})

test('a loss that is no number leaves a gap and is remembered once', () => {
  const run = applyWhole(fromSummary(summary), whole)
  applyEvent(run, metric(3, 'NaN'))
  applyEvent(run, metric(4, 'Infinity'))
  assert.equal(run.badStep, 3)
  assert.equal(run.metrics['loss/current'].length, 2)
})

test('a run read back with a broken loss says so too', () => {
  const run = applyWhole(fromSummary(summary), {
    ...whole,
    metrics: {
      'loss/current': [
        [1, 0.5],
        [2, 'NaN']
      ]
    }
  })
  assert.equal(run.badStep, 2)
})

test('series stay short, and keep their first and their last point', () => {
  const run = applyWhole(fromSummary(summary), whole)
  for (let step = 3; step < 3 * LONGEST_SERIES; step += 1) applyEvent(run, metric(step, 1 / step))
  const series = run.metrics['loss/current']
  assert.ok(series.length <= LONGEST_SERIES + 1)
  assert.equal(series[0][0], 1)
  assert.equal(series.at(-1)[0], 3 * LONGEST_SERIES - 1)
  for (let index = 0; index < 2 * LONGEST_RESOURCES; index += 1)
    applyEvent(run, { event: 'resource', values: { ram_mib: index } })
  assert.equal(run.resources.ram_mib.length, LONGEST_RESOURCES)
})

test('a preview and an artifact appear once', () => {
  const run = applyWhole(fromSummary(summary), whole)
  const preview = { event: 'preview', url: '/a.mp4', label: 'step 1' }
  const artifact = { event: 'artifact', kind: 'LoRA', path: '/x.safetensors', url: '/x' }
  for (const event of [preview, preview, artifact, artifact]) applyEvent(run, event)
  assert.equal(run.previews.length, 1)
  assert.equal(run.artifacts.length, 1)
})

test('an unknown event changes nothing', () => {
  const run = applyWhole(fromSummary(summary), whole)
  const before = JSON.stringify(run)
  applyEvent(run, { event: 'something new', values: { x: 1 } })
  assert.equal(JSON.stringify(run), before)
})

test('a long log loses its oldest lines, whole ones', () => {
  assert.equal(tail('one\ntwo\nthree\n', 8), 'three\n')
  assert.equal(tail('short', 100), 'short')
  const run = applyWhole(fromSummary(summary), whole)
  appendLog(run, 'b\n', 4)
  assert.deepEqual([run.log, run.logEnd], ['a\nb\n', 4])
})
