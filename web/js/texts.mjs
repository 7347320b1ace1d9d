/**
 * The page's texts in the reader's language. They lie in `locales/<language>/main.json` under "musubi", where ComfyUI
 * finds and serves them; a text that a language lacks is shown in English.
 */

import { translations } from './api.mjs'

let language = 'en'
let chosen = {}
let english = {}
let forms = [] // [key, pattern] of the sentences under "said", those that say more first
let options = {} // option → what it is called on a node

const MOST_SENTENCES = 8

/** Load the texts once, before anything is drawn. `locale` is ComfyUI's own setting, such as "ja". */
export async function loadTexts(locale) {
  language = locale || 'en'
  const all = await translations()
  english = all.en?.musubi ?? {}
  chosen = all[language]?.musubi ?? all[language.split('-')[0]]?.musubi ?? english
  const sentences = Object.entries(english.said ?? {}).sort(([, one], [, other]) => other.length - one.length)
  forms = sentences.map(([key, form]) => [key, patternOf(form)])
  options = namesOf((all[language] ?? all[language.split('-')[0]] ?? all.en)?.nodeDefs)
}

/** The names of widgets and inputs of our nodes, by their ids, without the id that may stand behind them. */
function namesOf(nodes) {
  const ours = Object.entries(nodes ?? {}).filter(([id]) => id.startsWith('MusubiTuner_'))
  const inputs = ours.flatMap(([, node]) => Object.entries(node.inputs ?? {}))
  return Object.fromEntries(inputs.map(([id, { name }]) => [id, name?.replace(` (${id})`, '')]))
}

/** The language in use, as Intl takes it. */
export function locale() {
  return language
}

/** `text('run.stop')`; `{name}` in it is replaced by `values.name`. */
export function text(key, values = {}) {
  const found = look(chosen, key) ?? look(english, key) ?? key
  return found.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole))
}

/** Like `text`, but `otherwise` where there is no such text. */
export function textOr(key, otherwise) {
  return look(chosen, key) ?? look(english, key) ?? otherwise
}

/**
 * What the engine says it is doing: in the reader's language where it is one of its fixed stages, else as it is. The
 * demo says before it for whom ("Wan 2.1: Training").
 */
export function doing(words) {
  const [before, stage] = /^(.*: )?(.*)$/s.exec(words ?? '').slice(1)
  return (before ?? '') + textOr(`doing.${keyOf(stage)}`, stage)
}

/** What an option is called on a node, in the reader's language. */
export function optionOf(name) {
  return options[name] || name.replaceAll('_', ' ')
}

/** A part of a memory plan: one of the engine's fixed words, or the option that names a model's file. */
export function planned(words) {
  return textOr(`planned.${keyOf(words)}`, null) ?? optionOf(words)
}

function keyOf(words) {
  return words.toLowerCase().replaceAll(/[^a-z0-9]+/g, '_')
}

/** What a run that goes on is doing; before its first stage, what the server said, such as what it waits for. */
export function doingNow({ progress, stage, message }) {
  return doing(progress?.label || stage) || said(message) // a stage clears what was counted: a count is always newer
}

/**
 * How a run ended or what it waits for, as the engine or the server says it: in the reader's language where its sentences
 * have the forms under "said", with the numbers and names that stand in them; a sentence of no form stays as it is.
 */
export function said(words) {
  const all = (words ?? '').split(/(?<=[.?])(?=[ \n])/) // each but the first begins with what parts it from the one before
  const sentences = [...all.slice(0, MOST_SENTENCES - 1), all.slice(MOST_SENTENCES - 1).join('')].filter(Boolean)
  let found = ''
  while (sentences.length) {
    const [count, phrase] = firstOf(sentences)
    found += phrase
    sentences.splice(0, count)
  }
  return found.replaceAll('。 ', '。')
}

/** How many of the sentences, the first ones, are of one form, as few as can be; and that in the reader's language. */
function firstOf(sentences) {
  for (let count = 1; count <= sentences.length; count += 1) {
    const [, gap, words] = /^(\s*)(.*)$/s.exec(sentences.slice(0, count).join(''))
    for (const [key, pattern] of forms) {
      const match = pattern.exec(words)
      if (!match) continue
      const { unit, stage, ...others } = match.groups ?? {}
      const values = { ...others, unit: unitOf(unit), stage: stage && planned(stage) }
      return [count, gap + text(`said.${key}`, values)]
    }
  }
  return [1, sentences[0]]
}

/** Of sentences of a form, with groups for what stands where it has `{name}`. */
function patternOf(form) {
  const parts = form.split(/\{(\w+)\}/) // text and names in turn
  const pattern = parts.map((part, place) => (place % 2 ? `(?<${part}>.*?)` : part.replace(/[^\w\s]/g, '\\$&')))
  return new RegExp(`^${pattern.join('')}$`, 's')
}

/** "steps", "clips", …: what the engine counts, in the reader's language. */
export function unitOf(name) {
  return name ? textOr(`unit.${name}`, name) : ''
}

function look(table, key) {
  const found = key.split('.').reduce((part, name) => part?.[name], table)
  return typeof found === 'string' ? found : undefined
}
