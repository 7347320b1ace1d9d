/**
 * The page's texts in the reader's language. They lie in `locales/<language>/main.json` under "musubi", where ComfyUI
 * finds and serves them; a text that a language lacks is shown in English.
 */

import { translations } from './api.mjs'

let language = 'en'
let chosen = {}
let english = {}
let forms = [] // [key, parts] of the sentences under "said": no value at the beginning first, then those that say more
let phrases = [] // the same of what stands in a sentence as a value: their keys begin with "phrase_"
let known = new Map() // sentences as they came → as they are shown: a card is drawn often, and says the same each time
let options = {} // option → what it is called on a node
let helps = new Map() // what a widget is for, in English → in the reader's language: often the hint of an error

const MOST_SENTENCES = 8
const MOST_KNOWN = 200
const PHRASE = 'phrase_'
const TELLING = 12 // letters that make a phrase out where it might be anything: "at most 5" may be
const ENDED = /[。．.？?！!）]$/
const SENTENCES = ['message', 'reason', 'error', 'why', 'problem', 'named', 'advice'] // values that may be sentences or phrases of a form
const LISTED = 'listed' // a list of names: "a, b or c", "a and b"
const WORDS = ['kind', 'kind2', 'what', 'file_kind'] // values that may be, and `file_kind` must be, of the words under "word"

/** Load the texts once, before anything is drawn. `locale` is ComfyUI's own setting, such as "ja". */
export async function loadTexts(locale) {
  language = locale || 'en'
  const all = await translations()
  english = all.en?.musubi ?? {}
  chosen = all[language]?.musubi ?? all[language.split('-')[0]]?.musubi ?? english
  const everyForm = Object.entries(english.said ?? {}).map(([key, form]) => [key, partsOf(form)])
  everyForm.sort(([, one], [, other]) => !one[0] - !other[0] || fixed(other) - fixed(one))
  forms = everyForm.filter(([key]) => !key.startsWith(PHRASE))
  phrases = everyForm.filter(([key]) => key.startsWith(PHRASE))
  known = new Map()
  const nodes = (all[language] ?? all[language.split('-')[0]] ?? all.en)?.nodeDefs
  options = namesOf(nodes)
  helps = helpsOf(all.en?.nodeDefs, nodes)
}

/** Widgets and inputs of our nodes: their node, their id, and their texts. */
function inputsOf(nodes) {
  const ours = Object.entries(nodes ?? {}).filter(([id]) => id.startsWith('MusubiTuner_'))
  return ours.flatMap(([node, { inputs }]) => Object.entries(inputs ?? {}).map(([id, texts]) => [node, id, texts]))
}

/** Their names, by their ids, without the id that may stand behind them. */
function namesOf(nodes) {
  return Object.fromEntries(inputsOf(nodes).map(([, id, { name }]) => [id, name?.replace(` (${id})`, '')]))
}

/** Their tooltips, by the English ones. */
function helpsOf(inEnglish, nodes) {
  const pairs = inputsOf(inEnglish).map(([node, id, { tooltip }]) => [tooltip, nodes?.[node]?.inputs?.[id]?.tooltip])
  return new Map(pairs.filter(([one, other]) => one && other))
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
  if (!words || chosen === english) return words ?? ''
  let found = known.get(words)
  if (found === undefined) {
    found = inWords(words)
    if (known.size >= MOST_KNOWN) known.delete(known.keys().next().value) // the oldest
    known.set(words, found)
  }
  return found
}

function inWords(words) {
  const all = words.split(/(?<=[.?])(?<!e\.g\.)(?=[ \n])/) // each but the first begins with what parts it from the one before
  const sentences = [...all.slice(0, MOST_SENTENCES - 1), all.slice(MOST_SENTENCES - 1).join('')].filter(Boolean)
  let found = ''
  while (sentences.length) {
    const [count, phrase] = firstOf(sentences)
    const changed = phrase !== sentences.slice(0, count).join('')
    sentences.splice(0, count)
    found += phrase + (changed && sentences[0]?.startsWith(' ') && !ENDED.test(phrase) ? fullStop() : '')
  }
  return found.replaceAll('。 ', '。')
}

/** What ends a sentence, where a value stood at the end of one and the next one follows. */
function fullStop() {
  return language.startsWith('ja') ? '。' : '.'
}

/** How many of the sentences, the first ones, are of one form, as few as can be; and that in the reader's language. */
function firstOf(sentences) {
  for (let count = 1; count <= sentences.length; count += 1) {
    const [, gap, words] = /^(\s*)(.*)$/s.exec(sentences.slice(0, count).join(''))
    const phrase = helps.get(words) ?? ofForm(words, forms)
    if (phrase !== null) return [count, gap + phrase]
  }
  return [1, endedBy(sentences[0])]
}

/** A sentence of no form: what is of one in it, its end behind a colon or all but its full stop. */
function endedBy(sentence) {
  const [, gap, words] = /^(\s*)(.*?)\.?$/s.exec(sentence)
  const telling = phrases.filter(([, parts]) => fixed(parts) >= TELLING)
  const whole = ofForm(words, telling)
  if (whole !== null) return `${gap}${whole}${fullStop()}`
  for (let colon = words.indexOf(': '); colon >= 0; colon = words.indexOf(': ', colon + 1)) {
    const reason = ofForm(words.slice(colon + 2), telling)
    if (reason !== null) return `${gap}${words.slice(0, colon)}: ${reason}${fullStop()}`
  }
  return sentence
}

/** Words in the reader's language if they are of one of these forms, else null. */
function ofForm(words, among) {
  for (const [key, parts] of among) {
    const values = valuesIn(words, parts)
    if (values && (!values.file_kind || wordOf(values.file_kind, null))) return text(`said.${key}`, shownAs(values))
  }
  return null
}

/** Values as they are shown: a word, a unit, a stage or a sentence of ours in the reader's language. */
function shownAs(values) {
  const shown = { ...values }
  if (values.unit) shown.unit = unitOf(values.unit)
  if (values.stage) shown.stage = planned(values.stage)
  for (const name of WORDS) if (values[name]) shown[name] = wordOf(values[name])
  for (const name of SENTENCES) if (values[name]) shown[name] = ofForm(values[name], phrases) ?? inWords(values[name])
  if (values.path && values.reason === shown.reason) shown.reason = reasonOf(values)
  const list = values[LISTED]
  if (list) shown[LISTED] = ofForm(list, phrases) ?? list.replaceAll(/,? (or|and) /g, ', ')
  return shown
}

/** "video", "a LoRA", …: what the engine calls a kind of thing, in the reader's language. */
function wordOf(name, otherwise = name) {
  return textOr(`word.${keyOf(name)}`, otherwise)
}

/** Why something of a file was left out: many a reason is a sentence with the file at its beginning. */
function reasonOf({ path, reason }) {
  const both = inWords(`${path}: ${reason}`)
  return both.startsWith(`${path}：`) ? both.slice(path.length + 1) : reason
}

/** Text and names in turn: "{count} written" → ["", "count", " written"]. */
function partsOf(form) {
  return form.split(/\{(\w+)\}/)
}

/** How much of a form is the same in every sentence of it. */
function fixed(parts) {
  return parts.reduce((sum, part, place) => sum + (place % 2 ? 0 : part.length), 0)
}

/** What stands in a sentence where its form has names, each as short as can be; null if it is of another form. */
function valuesIn(words, parts) {
  const last = parts.at(-1)
  if (!words.startsWith(parts[0]) || !words.endsWith(last)) return null
  if (parts.length === 1) return words === last ? {} : null
  const values = {}
  let from = parts[0].length
  for (let place = 1; place < parts.length; place += 2) {
    const after = parts[place + 1]
    const to = place === parts.length - 2 ? words.length - last.length : words.indexOf(after, from)
    if (to < from) return null
    values[parts[place]] = words.slice(from, to)
    from = to + after.length
  }
  return values
}

/** "steps", "clips", …: what the engine counts, in the reader's language. */
export function unitOf(name) {
  return name ? textOr(`unit.${name}`, name) : ''
}

function look(table, key) {
  const found = key.split('.').reduce((part, name) => part?.[name], table)
  return typeof found === 'string' ? found : undefined
}
