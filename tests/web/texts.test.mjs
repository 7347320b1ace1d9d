import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

import { api } from './comfyui_stub.mjs'

const { doing, doingNow, loadTexts, optionOf, planned, said } = await import('../../web/js/texts.mjs')

const file = (language, name) =>
  JSON.parse(readFileSync(new URL(`../../locales/${language}/${name}.json`, import.meta.url), 'utf8'))
const read = (language) => ({ ...file(language, 'main'), nodeDefs: file(language, 'nodeDefs') })
api.answers['/i18n'] = { en: read('en'), ja: read('ja') }

test('how a run ended is said in the reader’s language, with its numbers and names', async () => {
  await loadTexts('ja')
  assert.equal(
    said('Trained 250 steps, average loss 0.0412: /data/out/cat.safetensors'),
    '250 ステップ学習しました。平均損失 0.0412：/data/out/cat.safetensors'
  )
  assert.equal(said('2 of 3 written to /data/out'), '3 件中 2 件を /data/out に保存しました')
  assert.equal(said('1 written to /data/out'), '1 件を /data/out に保存しました')
  assert.equal(
    said('8 clips cached, 0 were there, 0 left out'),
    'クリップ：8 件をキャッシュ、0 件は作成済み、0 件を除外'
  )
  assert.equal(said('Cancelled.'), '中止しました。')
})

test('a sentence of another form stays as it is', async () => {
  await loadTexts('ja')
  for (const words of ['', 'The disk is full.', 'Twice. Or not.', 'Two\nlines: or more.\n']) assert.equal(said(words), words)
  assert.equal(said(undefined), '')
})

test('in English every sentence stays as it is', async () => {
  await loadTexts('en')
  const cached = '8 clips cached, 0 were there, 1 left out, 2 orphaned caches removed'
  for (const words of ['2 of 3 written to {path}', cached]) assert.equal(said(words), words)
})

test('a stage is named in the reader’s language, also behind the name of a family', async () => {
  await loadTexts('ja')
  assert.equal(doing('Loading the DiT'), 'DiT の読み込み')
  assert.equal(doing('Wan 2.1: Training'), 'Wan 2.1: 学習')
  assert.equal(doing('musubi_demo_wan_00001'), 'musubi_demo_wan_00001')
  assert.equal(doing(''), '')
})

test('before its first stage a run says what it waits for', async () => {
  await loadTexts('ja')
  const message = 'Waiting for another run to give up the GPU.'
  assert.equal(doingNow({ stage: '', message, progress: null }), '別の実行が GPU を空けるのを待っています。')
  assert.equal(doingNow({ stage: 'Training', message, progress: null }), '学習')
})

test('of several sentences each is said in the reader’s language, one of no form stays between them', async () => {
  await loadTexts('ja')
  const hint =
    'It does not fit: training step needs at least 23.4 GiB of 22.0 GiB, with fp8_scaled blocks_to_swap 38. ' +
    'With these options up to 49 frames of this size fit. Make it smaller: resolution, frames, or batch_size.'
  assert.equal(
    said(hint),
    '収まりません：学習ステップには fp8_scaled blocks_to_swap 38 を加えても、22.0 GiB のうち少なくとも 23.4 GiB が必要です。' +
      'この設定では、このサイズで 49 フレームまで収まります。解像度・フレーム数・batch_size のいずれかを小さくしてください。'
  )
  assert.equal(said('Cancelled. Once more. Cancelled.'), '中止しました。Once more. 中止しました。')
  const tail = 'Its last lines:\nTraceback. A. B. C. D. E. F. G. H.\nThe whole log: /a/log.txt'
  assert.equal(said(`This is a bug in the engine. ${tail}`).split('\n')[1], 'Traceback. A. B. C. D. E. F. G. H.')
})

test('a plan’s stages, what takes memory in them, and the options of it have the names of the nodes', async () => {
  await loadTexts('ja')
  assert.equal(planned('training step'), '学習ステップ')
  assert.equal(planned('DiT weights'), 'DiT の重み')
  assert.equal(planned('text_encoder1'), 'テキストエンコーダー 1')
  assert.equal(planned(''), '')
  assert.equal(optionOf('blocks_to_swap'), 'スワップするブロック数')
  assert.equal(optionOf('of_tomorrow'), 'of tomorrow')
  await loadTexts('en')
  assert.equal(planned('training step'), 'training step')
  assert.equal(optionOf('blocks_to_swap'), 'blocks to swap')
})

test('no form swallows what another one says: each sentence is said by its own', async () => {
  await loadTexts('ja')
  const [english, japanese] = ['en', 'ja'].map((language) => read(language).musubi)
  const filled = (form, values) => form.replace(/\{(\w+)\}/g, (_, name) => values[name])
  const plain = (words) => words.replaceAll('。 ', '。')
  const others = []
  for (const [key, form] of Object.entries(english.said)) {
    const names = [...form.matchAll(/\{(\w+)\}/g)].map(([, name]) => name)
    for (const sample of ['7', 'cats', '/data/a']) {
      const values = Object.fromEntries(names.map((name, place) => [name, `${sample}${place}`]))
      if ('file_kind' in values) values.file_kind = 'a LoRA'
      const shown = { ...values, ...('file_kind' in values && { file_kind: japanese.word.a_lora }) }
      const [one, other] = [filled(form, values), filled(japanese.said[key], shown)]
      const within = key.startsWith('phrase_') // it stands in another sentence only
      const found = said(within ? `The first: ${one}.` : one)
      if (found !== plain(within ? `最初のもの：${other}` : other)) others.push(`${key}: ${found}`)
    }
  }
  assert.deepEqual(others, [])
})

test('an error with several values, a word of ours and a hint that is a widget’s help', async () => {
  await loadTexts('ja')
  assert.equal(
    said('a.safetensors looks like a LoRA, not a Wan DiT. Give it as loras or network_weights. dit takes a Wan DiT.'),
    'a.safetensors は「LoRA」のようです。ここに必要なのは「Wan の DiT」です。loras か network_weights に指定してください。' +
      'dit に必要なのは「Wan の DiT」です。'
  )
  assert.equal(said('Training takes a while.'), 'Training takes a while.')
  const { tooltip } = read('en').nodeDefs.MusubiTuner_DatasetConfig.inputs.source
  assert.equal(said(tooltip), read('ja').nodeDefs.MusubiTuner_DatasetConfig.inputs.source.tooltip)
})

test('a sentence that was said is remembered, and not for ever', async () => {
  await loadTexts('ja')
  const error = '/data/cats: 3 of 9 videos have no caption: a.mp4, b.mp4, c.mp4 (expected .txt beside a.mp4).'
  const took = (count, words) => {
    const begun = performance.now()
    for (let number = 0; number < count; number += 1) said(words(number))
    return (performance.now() - begun) / count
  }
  const first = took(50, (number) => `${number}${error}`)
  const again = took(2000, () => error)
  assert.ok(again < first / 5, `${again} ms again, ${first} ms at first`)
  took(400, (number) => `Run ${number}: ${error}`) // the first one has been forgotten meanwhile, and is found anew
  assert.match(said(error), /9 個の動画のうち 3 個にキャプションがありません/)
})

test('a long text of many lines is looked through in no time', async () => {
  await loadTexts('ja')
  const lines = Array.from({ length: 400 }, (_, number) => `  File "/a/b.py", line ${number}: in x, (y) 'z' is not: 1.`)
  const begun = performance.now()
  said(`This is a bug in the engine. Its last lines:\n${lines.join('\n')}\nThe whole log: /a/log.txt`)
  assert.ok(performance.now() - begun < 500)
})
