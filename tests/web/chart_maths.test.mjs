import assert from 'node:assert/strict'
import { test } from 'node:test'

import {
  extent,
  indexAt,
  moved,
  nearest,
  range,
  reduced,
  smooth,
  smoothing,
  ticks,
  within,
  zoomed
} from '../../web/js/chart_maths.mjs'

const line = (count, value = (step) => step) =>
  Array.from({ length: count }, (_, index) => [index + 1, value(index + 1)])

test('the smoothed curve begins at the first value, not at half of it', () => {
  assert.deepEqual(smooth([[1, 4]], 0.9), [[1, 4]])
  const constant = smooth(
    line(50, () => 2),
    0.95
  )
  assert.ok(constant.every(([, value]) => Math.abs(value - 2) < 1e-12))
})

test('smoothing with weight 0 changes nothing', () => {
  assert.deepEqual(smooth(line(5), 0), line(5))
})

test('a longer series is smoothed more, up to a limit', () => {
  assert.ok(smoothing(10) < smoothing(1000))
  assert.equal(smoothing(1e4), smoothing(1e6))
  assert.ok(smoothing(1e6) < 1)
})

test('the extent of nothing is [0, 1], of one point it has a width', () => {
  assert.deepEqual(extent([[], []]), [0, 1])
  assert.deepEqual(extent([[[7, 1]]]), [6.5, 7.5])
  assert.deepEqual(extent([line(10), [[15, 0]]]), [1, 15])
})

test('one spike among many points does not flatten the curve', () => {
  const series = line(1000, (step) => (step === 500 ? 1e6 : 0.1))
  assert.ok(range([series], [1, 1000], 0.005)[1] < 1)
  assert.ok(range([series], [1, 1000], 0)[1] > 1e5)
})

test('a flat curve has a range with some height', () => {
  const [low, high] = range([line(10, () => 0)], [1, 10])
  assert.ok(low < 0 && high > 0)
})

test('a part of a series keeps one neighbour on each side', () => {
  assert.deepEqual(
    within(line(10), [4, 6]).map(([step]) => step),
    [3, 4, 5, 6, 7]
  )
  assert.deepEqual(within(line(3), [-5, 50]), line(3))
})

test('the nearest point is found between two, before the first and after the last', () => {
  const series = [
    [10, 0],
    [20, 1],
    [40, 2]
  ]
  assert.deepEqual(nearest(series, 14), [10, 0])
  assert.deepEqual(nearest(series, 16), [20, 1])
  assert.deepEqual(nearest(series, -5), [10, 0])
  assert.deepEqual(nearest(series, 99), [40, 2])
  assert.equal(nearest([], 1), null)
  assert.equal(indexAt(series, 20), 1)
})

test('ticks are round numbers inside the range', () => {
  assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1])
  assert.deepEqual(ticks(3, 97, 4), [50])
  assert.deepEqual(ticks(0.00011, 0.0002, 4), [0.00015, 0.0002])
  assert.deepEqual(ticks(1, 1, 4), [])
})

test('zooming keeps the step under the pointer, and stays inside the whole', () => {
  const [first, last] = zoomed([0, 100], 25, 0.5, [0, 100])
  assert.equal(last - first, 50)
  assert.equal((25 - first) / (last - first), 0.25)
  assert.deepEqual(zoomed([10, 20], 15, 100, [0, 100]), [0, 100])
  assert.deepEqual(zoomed([10, 13], 11, 0.5, [0, 100]), [10, 13]) // never closer than some steps
})

test('moving stops at the ends', () => {
  assert.deepEqual(moved([10, 20], -50, [0, 100]), [0, 10])
  assert.deepEqual(moved([10, 20], 500, [0, 100]), [90, 100])
})

test('a reduced series keeps its highest and its lowest point', () => {
  const series = line(10000, (step) => (step === 1234 ? 99 : step === 4321 ? -99 : Math.sin(step)))
  const kept = reduced(series, 500)
  assert.ok(kept.length <= 502)
  assert.ok(kept.some(([, value]) => value === 99) && kept.some(([, value]) => value === -99))
  assert.ok(kept.every(([step], index) => index === 0 || step > kept[index - 1][0]))
})

test('a learning rate that differs in its last digit only is flat, and has an end', () => {
  const series = [[1, 0.002], [2, 0.0020000000000000005]]
  const [low, high] = range([series], [1, 2])
  assert.ok(high - low > 1e-4)
  assert.ok(ticks(low, high, 4).length < 10)
  assert.deepEqual(ticks(0.002, 0.0020000000000000005, 4), [])
})
