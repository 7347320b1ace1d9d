import assert from 'node:assert/strict'
import { test } from 'node:test'

import './comfyui_stub.mjs'

const { mediaOf } = await import('../../web/js/samples.mjs')

const preview = { path: '/job/latent_preview.webp', url: '/file?name=latent_preview.webp&v=3', passing: true }
const sheet = { path: '/job/sheet.png', url: '/file?name=sheet.png', label: 'sheet' }
const video = { path: '/out/a.mp4', name: 'a.mp4', url: '/file?name=a.mp4' }
const shown = (previews, artifacts) => mediaOf({ previews, artifacts }).map(({ url }) => url)

test('what shows a video in the making is gone when the video is there', () => {
  assert.deepEqual(shown([sheet, preview], []), [sheet.url, preview.url])
  assert.deepEqual(shown([sheet, preview], [{ path: '/out/a.safetensors', url: '/x.safetensors' }]), [
    sheet.url,
    preview.url
  ])
  assert.deepEqual(shown([sheet, preview], [video]), [sheet.url, video.url])
})

test('a preview is labelled in its own words', () => {
  assert.equal(mediaOf({ previews: [{ ...preview, label: 'step 4 of 20' }], artifacts: [] })[0].label, 'step 4 of 20')
})
