// What all parts share: the data, small helpers, the state in the address, light and dark.
const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const data = JSON.parse($('data')?.textContent || '{"jobs":[],"axes":[],"measures":[],"sets":[],"prompts":[],"words":[]}');
const jobs = new Map(data.jobs.map((job, place) => [job.id, Object.assign(job, { place })]));
const done = data.jobs.filter((job) => job.done);
const el = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child != null));
  return made;
};
const bdi = (text) => el('bdi', {}, text);
const option = (value, text) => el('option', { value }, text);
const short = (text, most = 70) => (text.length > most ? text.slice(0, most - 1) + '…' : text);
const settings = (job) => data.axes.map((axis, a) => [axis.label, axis.values[job.s[a]]]);
const title = (job) => settings(job).map(([name, value]) => `${name} ${value}`).join(', ') || job.id;
const images = (job) => data.sets[job.set] ?? [];
const fileOf = (job, k) => [job.dir, ...images(job)[k][0].split('/')].map(encodeURIComponent).join('/');
const said = (job, k) => `${data.prompts[images(job)[k][1]] || 'no prompt'}, seed ${images(job)[k][2]}`;
const thumbs = new Map([...document.querySelectorAll('a.tile')].map((a) => [`${a.dataset.job} ${a.dataset.k}`, a]));
const thumbOf = (job, k) => thumbs.get(`${job.id} ${k}`)?.firstChild;
const number = (value, digits = 3) => {
  if (value == null) return '–';
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toPrecision(digits);
  return value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
};
// of a job's number: the least and most of a time, the interval of another
const around = (job, i) => (job.t[i] ? ` (${job.t[i]})` : interval(job.i[i]));
const interval = (pair) => (pair ? ` [${number(pair[0])}, ${number(pair[1])}]` : '');
// a picture beside the page, or the thumbnail inside it where that file is not
const show = (img, job, k) => {
  const thumb = thumbOf(job, k);
  const small = () => img.classList.toggle('px', img.naturalWidth > 0 && img.naturalWidth <= 160);
  img.onload = small;
  img.onerror = () => { img.onerror = null; if (thumb) img.src = thumb.src; };
  img.alt = said(job, k);
  img.src = fileOf(job, k);
};

// the state of the page is kept in its address, so that a view can be sent to someone, and outlives a reload
const state = new Map(new URLSearchParams(location.hash.startsWith('#?') ? location.hash.slice(2) : ''));
const keep = (name, value) => {
  if (value == null || value === '') state.delete(name); else state.set(name, value);
  const query = new URLSearchParams([...state]).toString();
  history.replaceState(null, '', query ? `#?${query}` : location.pathname + location.search);
};

const stored = (value) => {
  try { return value === undefined ? localStorage.getItem('research-theme') : localStorage.setItem('research-theme', value); } catch { return null; }
};
if (['light', 'dark'].includes(stored())) root.dataset.theme = stored();
const toggleTheme = () => {
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  stored(root.dataset.theme);
};
$('theme').addEventListener('click', toggleTheme);
const typing = (event) => event.target.closest?.('input, select, textarea') || event.ctrlKey || event.metaKey || event.altKey;
document.addEventListener('keydown', (event) => {
  if (typing(event) || $('view')?.open) return;
  if (event.key === 't') toggleTheme();
  if (event.key === '/' && $('filter')) { event.preventDefault(); $('filter').focus(); }
});
root.classList.add('on');

// a live view: what is there is shown again when it has changed, in the place and state it was left in
const live = document.querySelector('meta[name="live"]')?.content;
if (live) {
  const busy = () => $('view')?.open || document.activeElement?.matches('input, select');
  const again = () => { try { sessionStorage.setItem('research-scroll', String(scrollY)); } catch { /* not allowed: starts at the top */ } location.reload(); };
  try { const at = Number(sessionStorage.getItem('research-scroll')); sessionStorage.removeItem('research-scroll'); if (at) addEventListener('load', () => scrollTo({ top: at, behavior: 'instant' })); } catch { /* the same */ }
  let seen = null;
  setInterval(async () => {
    if (busy() || document.hidden) return;
    if (location.protocol === 'file:') return again();
    try {
      const now = await (await fetch('live.json', { cache: 'no-store' })).json();
      if (seen !== null && now.version !== seen) again();
      seen = now.version;
      if (now.progress) $('progress').innerHTML = now.progress;
    } catch { /* the server has gone: what was last shown stays */ }
  }, Number(live) * 1000);
}
