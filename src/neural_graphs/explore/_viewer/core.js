// What all parts share: the data, small helpers, and one object for what is chosen.
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const state = {chosen: null, pinned: null};

// An element: make('td', {class: 'n', onclick: f}, 'text', child, ...); text is never read as HTML.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function number(value) {
  if (value === null || value === undefined) return '–';
  if (Number.isNaN(value)) return 'NaN';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  if (value === 0) return '0';
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
  return text.replace('-', '−').replace('e-', 'e−').replace('e+', 'e');
}

const count = (value) => value.toLocaleString('en-US');

function short(value) {
  for (const [unit, word] of [[1e9, 'B'], [1e6, 'M'], [1e3, 'k']]) {
    if (value >= unit) return Number((value / unit).toPrecision(3)) + word;
  }
  return String(value);
}

const hue = (name) => {
  const index = data.classes.findIndex((found) => found.name === name);
  return index < 0 ? 'transparent' : data.classes[index].color;
};

const odd = (found) => [found.nan ? `${count(found.nan)} NaN` : '', found.inf ? `${count(found.inf)} infinite` : '']
  .filter(Boolean).join(', ');

function table(head, rows, numeric) {
  const kind = (column) => (numeric.includes(column) ? 'n' : null);
  return make('div', {class: 'scroll'}, make('table', {},
    make('thead', {}, make('tr', {}, head.map((cell, i) => make('th', {class: kind(i)}, cell)))),
    make('tbody', {}, rows.map((row) => make('tr', row.attributes || {},
      (row.cells || row).map((cell, i) => make('td', {class: kind(i)}, cell)))))));
}

const NUMBERS = ['mean', 'std', 'min', 'max'];
const numbers = (found) => NUMBERS.map((name) => number(found[name]));
const setName = (index) => data.sets[index].name;
const incoming = (index) => data.sets[index].incoming.map((k) => data.blocks[k]);
const kindWord = (block) => block.kind + (block.groups > 1 && block.parameter ? `, ${count(block.groups)} groups` : '');
