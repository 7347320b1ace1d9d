import assert from 'node:assert/strict'
import { test } from 'node:test'

import {
  chosen,
  duration,
  marks,
  memory,
  moment,
  share,
  short,
  speed,
  withoutFolders,
  worstStages
} from '../../web/js/format.mjs'
import { highlighted, levelOf } from '../../web/js/log_lines.mjs'
import { nodeAt, runOf, taskOf } from '../../web/js/graph.mjs'

test('durations are read at a glance', () => {
  assert.deepEqual([0, 75, 3725, 59.6].map(duration), ['0:00', '1:15', '1:02:05', '1:00'])
  assert.deepEqual([Number.NaN, undefined, -1].map(duration), ['–', '–', '–'])
})

test('a slow rate is told in seconds for each unit', () => {
  assert.equal(speed(3.417, 'steps'), '3.42 steps/s')
  assert.equal(speed(0.25, 'steps'), '4 s/step')
  assert.equal(speed(0, 'steps'), '')
})

test('numbers have three digits, and no empty zeros', () => {
  assert.deepEqual([0.0002, 0.12345, 1234.5, 2e7, 0].map(short), ['2e-4', '0.123', '1230', '2e7', '0'])
})

test('the marks of one axis share a notation', () => {
  assert.deepEqual(marks([0, 0.0005, 0.001, 0.0015]), ['0', '5e-4', '1e-3', '1.5e-3'])
  assert.deepEqual(marks([0, 0.05, 0.1]), ['0', '0.05', '0.1'])
})

test('memory is told in MiB below a GiB', () => {
  assert.deepEqual([812, 11469].map(memory), ['812 MiB', '11.2 GiB'])
})

test('options that were chosen are read as words', () => {
  const options = { blocks_to_swap: 20, fp8_scaled: true, use_pinned_memory: false }
  const [spaced, without] = [(option) => option.replaceAll('_', ' '), (name) => `no ${name}`]
  assert.deepEqual(chosen(options, spaced, without), ['blocks to swap 20', 'fp8 scaled', 'no use pinned memory'])
  assert.deepEqual(chosen(undefined), [])
})

test('of stages with one name, the one that takes most is told, with what takes most in it', () => {
  const stages = [
    { name: 'training', needed_mib: 10, device_mib: { weights: 4, LoRA: 5 } },
    { name: 'training', needed_mib: 30, device_mib: { weights: 20, LoRA: 5 } },
    { name: 'training', needed_mib: 20, device_mib: {} },
    { name: 'text', needed_mib: 7, device_mib: {} }
  ]
  assert.deepEqual(worstStages(stages), [
    { name: 'training', needed_mib: 30, largest: 'weights' },
    { name: 'text', needed_mib: 7, largest: '' }
  ])
})

test('a moment of today is a time, another one has its date', () => {
  const now = new Date(2026, 10, 21, 12).getTime()
  assert.doesNotMatch(moment(now / 1000 - 60, 'en', now), /Nov/)
  assert.match(moment(now / 1000 - 5 * 86400, 'en', now), /Nov/)
})

test('the share is unknown without a total', () => {
  assert.equal(share({ done: 5, total: null }), null)
  assert.equal(share({ done: 15, total: 10 }), 1)
})

const inner = { id: 3 }
const graphOf = (...nodes) => ({ getNodeById: (id) => nodes.find((node) => node.id === id) ?? null })
const outer = { id: 12, subgraph: graphOf(inner) }
const root = { ...graphOf(outer, { id: 3 }), id: 'w1' }

test('a node in a sub-graph is found by its path, and is not the one of the same number outside', () => {
  assert.equal(nodeAt(root, '12:3'), inner)
  assert.notEqual(nodeAt(root, '3'), inner)
  assert.equal(nodeAt(root, '12:99'), null)
  assert.equal(nodeAt(root, '3:3'), null)
})

test('a node shows the newest run of its own task in its own workflow', () => {
  const runs = [
    { id: 'e', node: '12:3', verb: 'train', workflow: 'w2' },
    { id: 'd', node: '12:3', verb: 'generate', workflow: 'w1' },
    { id: 'c', node: '3', verb: 'train', workflow: 'w1' },
    { id: 'b', node: '12:3', verb: 'train', workflow: 'w1' },
    { id: 'a', node: '12:3', verb: 'train', workflow: 'w1' }
  ]
  assert.equal(runOf(inner, runs, root, 'train').id, 'b')
  assert.equal(runOf(outer, runs, root, 'train'), undefined)
})

test('a run of a graph that was never saved is found after a reload, when the graph has got its id', () => {
  const run = { id: 'a', node: '12:3', verb: 'train', workflow: '00000000-0000-0000-0000-000000000000' }
  assert.equal(runOf(inner, [run], root, 'train'), run)
})

test('what a node runs follows from its name', () => {
  const named = [
    'Wan21LoRATrainer',
    'FramePackGenerator',
    'VAELatentCache',
    'LoRAMerger',
    'TrainingMonitor',
    'DatasetConfig'
  ]
  assert.deepEqual(
    named.map((name) => taskOf(`MusubiTuner_${name}`)),
    ['train', 'generate', 'cache-latents', 'lora merge', 'newest', '']
  )
  assert.equal(taskOf('OtherPack_LoRATrainer'), '')
  assert.equal(taskOf(undefined), '')
})

test('a search hit is found whatever its case, every time it occurs', () => {
  assert.deepEqual(highlighted('Loss and loss.', 'LOSS'), [
    ['Loss', true],
    [' and ', false],
    ['loss', true],
    ['.', false]
  ])
  assert.deepEqual(highlighted('nothing', ''), [['nothing', false]])
  assert.deepEqual(highlighted('<b>&', 'b'), [
    ['<', false],
    ['b', true],
    ['>&', false]
  ])
})

test('errors and warnings stand out, ordinary words do not', () => {
  assert.deepEqual(['12:00 error: x', 'Traceback (most', 'warning: y', 'terror', 'saved LoRA'].map(levelOf), [
    'error',
    'error',
    'warning',
    '',
    ''
  ])
})

test('a message keeps the name of a file and loses its folders', () => {
  assert.equal(withoutFolders('Trained: /data/my/lora.safetensors'), 'Trained: lora.safetensors')
  assert.equal(withoutFolders('written to C:\\Comfy\\out\\a.mp4 and b'), 'written to a.mp4 and b')
  assert.equal(withoutFolders('100 steps, 3.4 steps/s, 1/2'), '100 steps, 3.4 steps/s, 1/2')
})
