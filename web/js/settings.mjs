/**
 * The settings that live on the server, never in a workflow: where the engine is, which GPU, how long it stays, log level, folders.
 *
 * The same fields stand in ComfyUI's settings dialog and in our setup dialog. A change is sent at once; what is wrong
 * with it is said below the field.
 */

import { server } from './api.mjs'
import { make } from './dom.mjs'
import { said, text } from './texts.mjs'

const GPUS = 8
const MOST_MINUTES = 24 * 60
const LEVELS = ['debug', 'info', 'warning', 'error']

/** Setting → how it is edited. `read` and `write` turn the server's value into the field's and back. */
const FIELDS = {
  home: {
    make: () =>
      make('input', {
        type: 'text',
        class: 'musubi-input',
        spellcheck: 'false',
        placeholder: text('settings.home_default')
      })
  },
  gpu: { make: () => choices(['auto', 'cpu', ...Array.from({ length: GPUS }, (_, index) => String(index))], gpuName) },
  keep_alive: {
    make: () => make('input', { type: 'number', class: 'musubi-input', min: '0', max: String(MOST_MINUTES), step: '1' }),
    write: (words) => Number(words)
  },
  log_level: { make: () => choices(LEVELS, (level) => level) },
  roots: {
    make: () =>
      make('textarea', {
        class: 'musubi-input',
        rows: '3',
        spellcheck: 'false',
        placeholder: text('settings.roots_example')
      }),
    read: (folders) => folders.join('\n'),
    write: (words) =>
      words
        .split('\n')
        .map((line) => line.trim())
        .filter(Boolean)
  }
}

function gpuName(value) {
  return /^\d+$/.test(value) ? text('settings.gpu_number', { number: value }) : text(`settings.gpu_${value}`)
}

function choices(values, name) {
  return make('select', { class: 'musubi-input' }, ...values.map((value) => make('option', { value }, name(value))))
}

/** A field for one setting, filled when the server answers. */
export function settingField(name) {
  const { make: build, read = (value) => value, write = (value) => value } = FIELDS[name]
  const input = build()
  input.setAttribute('aria-label', text(`settings.${name}`))
  input.disabled = true
  const problem = make('div', { class: 'musubi-problem error', role: 'alert', hidden: true })
  const element = make('div', { class: 'musubi musubi-setting', 'data-setting': name }, input, problem)
  const say = (error) => {
    problem.hidden = !error
    problem.textContent = error ? said(`${error.message} ${error.hint ?? ''}`.trim()) : ''
  }
  const show = (values) => {
    input.value = read(values[name])
    input.disabled = false
  }
  server.settings().then(show, say)
  input.addEventListener('change', async () => {
    try {
      show(await server.changeSettings({ [name]: write(input.value) }))
      say(null)
    } catch (error) {
      say(error)
    }
  })
  input.addEventListener('keydown', (event) => event.stopPropagation()) // ComfyUI's own keys
  return element
}

/** The entries for ComfyUI's settings dialog; `locales/<language>/settings.json` translates them. */
export function comfySettings(openSetup) {
  const custom = (name, label, tooltip) => ({
    id: `MusubiTuner.${name}`,
    name: label,
    tooltip,
    category: ['Musubi Tuner', 'Engine', name],
    defaultValue: '',
    type: () => settingField(name)
  })
  return [
    {
      id: 'MusubiTuner.Notify',
      name: 'Tell me when a run ends',
      category: ['Musubi Tuner', 'Page', 'Notify'],
      tooltip: 'A message in the corner when a training or a video is finished or has failed.',
      type: 'boolean',
      defaultValue: true
    },
    custom('roots', 'Allowed folders', 'Folders that workflows may use beside those of ComfyUI, one a line.'),
    custom('log_level', 'Log level', 'How much the engine writes into its log.'),
    custom(
      'keep_alive',
      'Keep the engine after a generation (minutes)',
      'The next video then starts at once. Its models wait in main memory; 0 gives everything back.'
    ),
    custom('gpu', 'GPU', 'On which GPU the engine works.'),
    custom(
      'home',
      "Folder of the engine's environment",
      'Where the engine and its packages are installed. Empty: the usual folder.'
    ),
    {
      id: 'MusubiTuner.Setup',
      name: 'Engine',
      tooltip: 'Make, repair or check the environment that trains and generates.',
      category: ['Musubi Tuner', 'Engine', 'Setup'],
      defaultValue: '',
      type: () => {
        const open = make('button', { type: 'button', class: 'musubi-button', onclick: openSetup }, text('setup.open'))
        return make('div', { class: 'musubi musubi-setting' }, open)
      }
    }
  ]
}
