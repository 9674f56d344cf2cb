// Moving over the drawing: wheel, drag, pinch, buttons, keys.
const canvas = byId('canvas');
const world = byId('world');
const view = {x: 0, y: 0, scale: 1, width: 1, height: 1, moved: false, fitted: true};

function show() {
  world.setAttribute('transform', `translate(${view.x.toFixed(2)} ${view.y.toFixed(2)}) scale(${view.scale.toFixed(4)})`);
}

function limits() {
  const fit = Math.min(canvas.clientWidth / view.width, canvas.clientHeight / view.height);
  return [Math.min(fit, 0.5) * 0.7, 8];
}

// Everything; but where that would be too small to read, the beginning at a readable size.
function fit(readable) {
  const width = canvas.clientWidth, tools = byId('tools');
  let top = 0, height = canvas.clientHeight;
  const whole = () => Math.min(width / view.width, height / view.height, 1.6);
  let scale = whole();
  if ((width + view.width * scale) / 2 > width - tools.offsetWidth - 24) { // keep clear of the buttons
    top = tools.offsetHeight + 8;
    height -= top;
    scale = whole();
  }
  if (readable && scale < 0.4) scale = Math.max(scale, Math.min(0.75, Math.max(width / view.first, 0.4)));
  view.scale = scale;
  view.x = Math.max((width - view.width * scale) / 2, 0);
  view.y = top + Math.max((height - view.height * scale) / 2, 0);
  view.fitted = true;
  show();
}

function zoom(factor, x, y) {
  const [least, most] = limits();
  const scale = Math.min(most, Math.max(least, view.scale * factor));
  x = x === undefined ? canvas.clientWidth / 2 : x;
  y = y === undefined ? canvas.clientHeight / 2 : y;
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  view.fitted = false;
  show();
}

function pan(dx, dy) {
  const keep = 60;
  view.x = Math.min(canvas.clientWidth - keep, Math.max(keep - view.width * view.scale, view.x + dx));
  view.y = Math.min(canvas.clientHeight - keep, Math.max(keep - view.height * view.scale, view.y + dy));
  view.fitted = false;
  show();
}

// Bring a box into sight, moving no more than needed.
function reveal(box) {
  if (view.scale < 0.45) zoom(0.8 / view.scale);
  const edge = 40;
  const ends = (at, size, room, origin) => {
    const from = at * view.scale + origin, to = from + size * view.scale;
    return from < edge || size * view.scale > room - 2 * edge ? edge - from : to > room - edge ? room - edge - to : 0;
  };
  const dx = ends(box.x, box.width, canvas.clientWidth, view.x);
  const dy = ends(box.y, box.height, canvas.clientHeight, view.y);
  if (dx || dy) pan(dx, dy);
}

function useView(name) {
  for (const button of document.querySelectorAll('[data-view]')) {
    button.setAttribute('aria-pressed', String(button.dataset.view === name));
  }
  for (const id of ['layers', 'neurons']) {
    const group = byId(id);
    if (group) group.style.display = id === name ? '' : 'none';
  }
  byId('legend').hidden = name !== 'layers';
  Object.assign(view, data.views[name]);
  fit(true);
}

function startView() {
  canvas.addEventListener('wheel', (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    const step = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
    zoom(Math.exp(-Math.max(-120, Math.min(120, step)) * (event.ctrlKey ? 0.01 : 0.0022)),
      event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});

  const fingers = new Map();
  let travelled = 0;
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    if (!fingers.size) { travelled = 0; view.moved = false; }
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  window.addEventListener('pointermove', (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const dx = event.clientX - before[0], dy = event.clientY - before[1];
    travelled += Math.hypot(dx, dy);
    if (travelled < 5) return;
    view.moved = true;
    canvas.classList.add('drag');
    const others = [...fingers].filter(([id]) => id !== event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (others.length) {
      const [x, y] = others[0][1], box = canvas.getBoundingClientRect();
      const old = Math.hypot(before[0] - x, before[1] - y), now = Math.hypot(event.clientX - x, event.clientY - y);
      pan(dx / 2, dy / 2);
      if (old > 0) zoom(now / old, (x + event.clientX) / 2 - box.left, (y + event.clientY) / 2 - box.top);
    } else pan(dx, dy);
  });
  for (const name of ['pointerup', 'pointercancel']) {
    window.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) canvas.classList.remove('drag');
    });
  }
  // A drag that ends on a layer is no click on it.
  canvas.addEventListener('click', (event) => {
    if (view.moved) { event.stopPropagation(); event.preventDefault(); view.moved = false; }
  }, true);

  const keys = {'+': () => zoom(1.25), '=': () => zoom(1.25), '-': () => zoom(0.8), '0': () => fit(false),
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60)};
  canvas.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  byId('zoom-out').addEventListener('click', () => zoom(0.8));
  byId('zoom-in').addEventListener('click', () => zoom(1.25));
  byId('zoom-fit').addEventListener('click', () => fit(false));
  for (const button of document.querySelectorAll('[data-view]')) {
    button.addEventListener('click', () => useView(button.dataset.view));
  }
  window.addEventListener('resize', () => { if (view.fitted) fit(true); });
  useView(data.first);
}
