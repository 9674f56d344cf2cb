// A block's weights as colours: orange positive, blue negative, on one scale on both sides of zero.
const SPECIAL = {1: [-128, 127, -127, 126], 2: [-32768, 32767, -32767, 32766]}; // NaN, infinity, -infinity, largest

function decode(image) {
  const text = atob(image.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const codes = image.bytes === 1 ? new Int8Array(bytes.buffer) : new Int16Array(bytes.buffer);
  const [nan, high, low, top] = SPECIAL[image.bytes];
  return Float64Array.from(codes, (code) =>
    (code === nan ? NaN : code === high ? Infinity : code === low ? -Infinity : code / top * image.scale));
}

function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const full = text.length === 4 ? [...text.slice(1)].map((digit) => digit + digit).join('') : text.slice(1, 7);
  return [0, 2, 4].map((i) => parseInt(full.slice(i, i + 2), 16));
}

// The end of the colour scale: outliers would leave everything else white, so they may lie beyond it.
function reach(values) {
  const sizes = values.filter(Number.isFinite).map(Math.abs).sort();
  if (!sizes.length) return 1;
  const most = sizes[sizes.length - 1], usual = sizes[Math.floor(0.99 * (sizes.length - 1))];
  return (usual > 0 && most > 2.5 * usual ? usual * 1.2 : most) || 1;
}

function paint(target, map, values, scale) {
  target.width = map.columns;
  target.height = map.rows;
  const context = target.getContext('2d'), pixels = context.createImageData(map.columns, map.rows);
  const paper = colour('--paper'), ends = [colour('--neg'), colour('--pos')];
  const nan = colour('--nan'), inf = colour('--inf');
  values.forEach((value, i) => {
    const share = Math.min(1, Math.abs(value) / scale), end = ends[value > 0 ? 1 : 0];
    const mixed = Number.isNaN(value) ? nan : !Number.isFinite(value) ? inf
      : paper.map((part, c) => part + (end[c] - part) * share);
    pixels.data.set([...mixed, 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

function thumbnail(block) {
  if (!block.map) return make('i', {'aria-hidden': 'true'});
  const target = make('canvas', {'aria-hidden': 'true'}), values = decode(block.map.strongest);
  paint(target, block.map, values, reach(values));
  return target;
}

function span(index, step, size) {
  const last = Math.min(size, (index + 1) * step) - 1;
  return last > index * step ? `${count(index * step)}–${count(last)}` : String(index);
}

// The large image with its scale, its two readings, and the value under the pointer or the keyboard's mark.
function weightMap(block, room) {
  const map = block.map;
  const readings = map.average ? {strongest: 'Strongest', average: 'Average'} : {strongest: 'Value'};
  const target = make('canvas', {tabindex: 0, role: 'img', 'aria-label':
    `Weights of ${block.parameter}: ${map.rows} by ${map.columns} cells; arrow keys read single ones`});
  const mark = make('div', {class: 'mark', hidden: ''}), output = make('output', {'aria-live': 'polite'});
  const ramp = make('div', {class: 'ramp'});
  const width = Math.max(1, Math.min(24, Math.max(10, Math.floor(room / map.columns)), room / map.columns));
  const height = Math.max(1, Math.min(24, 340 / map.rows));
  target.style.width = `${map.columns * width}px`;
  target.style.height = `${map.rows * height}px`;
  let values, reading = 'strongest', at = [0, 0];
  const hint = map.by_feature ? 'kernel entry' : 'source';

  function read(name) {
    reading = name;
    values = decode(map[name]);
    const scale = reach(values);
    paint(target, map, values, scale);
    ramp.replaceChildren(number(-scale), make('i', {}), number(scale));
    for (const button of choice.children) button.setAttribute('aria-pressed', String(button.dataset.reading === name));
    if (!mark.hidden) point(at[0], at[1]);
  }
  function point(row, column) {
    at = [Math.max(0, Math.min(map.rows - 1, row)), Math.max(0, Math.min(map.columns - 1, column))];
    const box = target.getBoundingClientRect(), w = box.width / map.columns, h = box.height / map.rows;
    Object.assign(mark.style, {left: `${at[1] * w}px`, top: `${at[0] * h}px`, width: `${w}px`, height: `${h}px`});
    mark.hidden = false;
    const value = number(values[at[0] * map.columns + at[1]]);
    const place = `target ${span(at[0], map.row_step, map.size[0])}, ${hint} ${span(at[1], map.column_step, map.size[1])}`;
    output.replaceChildren(make('b', {}, `${map.average ? reading + ' ' : ''}${value}`), place);
  }
  for (const name of ['pointermove', 'pointerdown']) {
    target.addEventListener(name, (event) => {
      const box = target.getBoundingClientRect();
      point(Math.floor((event.clientY - box.top) / box.height * map.rows),
        Math.floor((event.clientX - box.left) / box.width * map.columns));
    });
  }
  target.addEventListener('focus', () => { if (target.matches(':focus-visible')) point(at[0], at[1]); });
  target.addEventListener('keydown', (event) => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    point(at[0] + step[0], at[1] + step[1]);
  });
  const choice = make('div', {class: 'group', role: 'group', 'aria-label': 'What a cell shows'},
    Object.entries(readings).map(([name, word]) =>
      make('button', {type: 'button', 'data-reading': name, onclick: () => read(name)}, word)));
  const note = map.average ? `A cell stands for ${map.row_step} × ${map.column_step} neurons`
    + `${map.features > 1 ? ` and ${map.features} features` : ''}: its strongest entry, or their average.` : '';
  const element = make('div', {class: 'map'}, map.average ? choice : null, output,
    make('div', {}, make('div', {class: 'frame'}, target, mark)),
    make('div', {class: 'axis'}, `rows: ${count(map.size[0])} targets · columns: ${count(map.size[1])} `
      + (map.by_feature ? 'kernel entries' : `sources${block.groups > 1 ? ' of the own group' : ''}`)),
    ramp,
    make('div', {class: 'marks'}, block.nan ? make('span', {}, make('i', {style: 'background:var(--nan)'}), 'NaN') : null,
      block.inf ? make('span', {}, make('i', {style: 'background:var(--inf)'}), 'infinite') : null),
    note ? make('p', {class: 'sub'}, note) : null);
  read('strongest');
  output.textContent = 'Point at a cell for its value.';
  element.repaint = () => read(reading);
  return element;
}
