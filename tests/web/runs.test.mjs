import assert from 'node:assert/strict'
import { test } from 'node:test'

import { api } from './comfyui_stub.mjs'

const runs = await import('../../web/js/runs.mjs')

const summary = (id, state, more = {}) => ({ id, state, verb: 'train', started: 100, ended: null, ...more })
const whole = (id, state) => ({ ...summary(id, state), metrics: {}, resources: {}, previews: [], artifacts: [] })
const turn = () => new Promise((done) => setTimeout(done, 5))

/** An answer that waits for `give()`. */
function slow(body) {
  let give
  const given = new Promise((resolve) => (give = resolve))
  return { answer: () => given.then(() => body), give }
}

test('the end of a run that comes while it is being fetched is not forgotten', async () => {
  api.answers['/musubi/runs'] = { runs: [summary('a', 'running')] }
  await runs.followRuns()
  const { answer, give } = slow(whole('a', 'running'))
  api.answers['/musubi/runs/a'] = answer
  runs.watch('a', () => {})
  await turn()
  api.say('musubi.event', { run: 'a', event: { event: 'metric', step: 3, values: { 'loss/current': 0.5 } } })
  api.say('musubi.run', summary('a', 'failed', { ended: 160 }))
  give()
  await turn()
  assert.equal(runs.get('a').state, 'failed')
  assert.deepEqual(runs.get('a').metrics['loss/current'], [[3, 0.5]])
})

test('news that come while the list is being fetched are newer than the list', async () => {
  const { answer, give } = slow({ runs: [summary('b', 'running')] })
  api.answers['/musubi/runs'] = answer
  const asked = runs.refresh()
  await turn()
  api.say('musubi.run', summary('b', 'done'))
  api.say('musubi.run', summary('c', 'running'))
  give()
  await asked
  assert.deepEqual(
    runs.list().map(({ id, state }) => `${id} ${state}`),
    ['c running', 'b done']
  )
})

test('a run that the server does not know any more is gone from the list', async () => {
  api.answers['/musubi/runs'] = { runs: [summary('c', 'done')] }
  await runs.refresh()
  assert.deepEqual(
    runs.list().map(({ id }) => id),
    ['c']
  )
})

test('a run of another ComfyUI, of which no message comes, is asked for until it has ended', async () => {
  const there = { elsewhere: { process: 7, machine: 'box' } }
  api.answers['/musubi/runs'] = { runs: [summary('e', 'running', there), summary('f', 'done')] }
  api.answers['/musubi/runs/e'] = { ...whole('e', 'running'), ...there }
  await runs.refresh(() => false)
  const seen = []
  runs.watch('e', ({ state }) => seen.push(state))
  await turn()
  api.answers['/musubi/runs'] = { runs: [summary('e', 'done', { elsewhere: null }), summary('f', 'done')] }
  api.answers['/musubi/runs/e'] = { ...whole('e', 'done'), elsewhere: null, artifacts: [{ path: '/a' }] }
  await runs.lookElsewhere()
  await turn()
  assert.equal(seen.at(-1), 'done')
  assert.equal(runs.get('e').artifacts.length, 1)
  api.answers['/musubi/runs'] = () => assert.fail('nobody is at work elsewhere')
  await runs.lookElsewhere()
})
