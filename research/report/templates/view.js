// One picture large, with its settings, its numbers, and the command that makes it again.
const view = $('view');
const sheetOrder = () => {
  const rows = table ? [...table.tBodies[0].rows].filter((row) => !row.hidden) : [];
  return rows.length ? rows.map((row) => jobs.get(row.dataset.job)) : data.jobs;
};
let shown = null;
const pairs = (list, items) => list.replaceChildren(...items.flatMap(([name, value, marked]) => [el('dt', {}, name), el('dd', marked ? { class: marked } : {}, bdi(value))]));
const fill = () => {
  const { job } = shown;
  const count = images(job).length;
  const k = shown.k = count ? Math.max(0, Math.min(count - 1, shown.k)) : -1;
  $('view-title').replaceChildren(bdi(title(job)));
  $('view-error').textContent = job.done ? '' : `failed: ${job.error || 'no error was recorded'}`;
  const named = settings(job);
  if (k >= 0) {
    const [file, p, seed] = images(job)[k];
    $('view-img').hidden = false;
    show($('view-img'), job, k);
    $('view-caption').replaceChildren(bdi(said(job, k)));
    if (data.prompts[p]) named.push(['prompt', data.prompts[p]]);
    named.push(['seed', String(seed)], ['file', `${job.dir}/${file}`]);
    $('cmd').textContent = job.cmd[0] + file + job.cmd[1];
  } else {
    $('view-img').hidden = true;
    $('view-caption').textContent = 'No pictures.';
  }
  $('view-command').hidden = k < 0;
  $('cmd-job').textContent = job.all;
  named.push(['job', job.id]);
  pairs($('view-settings'), named);
  const own = k < 0 ? [] : Object.entries(job.sc).filter(([, list]) => list[k] != null);
  pairs($('view-numbers'), [
    ...data.measures.map((m, i) => [m.label + (job.k[i] ? ` (${job.k[i]})` : ''), job.v[i] == null ? '–' : number(job.v[i]) + around(job, i)]),
    ...own.map(([key, list]) => [`${data.measures.find((m) => m.key === key)?.label ?? key.replaceAll('_', ' ')}, this picture`, number(list[k])]),
  ]);
  $('view-place').textContent = count ? `${k + 1} of ${count}` : '';
  const order = sheetOrder();
  $('view-job').textContent = `${order.indexOf(job) + 1} of ${order.length}`;
  $('view-prev').disabled = k <= 0;
  $('view-next').disabled = k < 0 || k >= count - 1;
  for (const id of ['copy', 'copy-job']) $(id).textContent = 'Copy';
};
const open = (job, k) => {
  shown = { job, k };
  fill();
  if (!view.open) view.showModal();
};
const move = (pictures, others) => {
  const order = sheetOrder();
  const place = order.indexOf(shown.job) + others;
  if (others && order[place]) shown.job = order[place];
  shown.k += pictures;
  fill();
};
if (view) {
  $('view-prev').addEventListener('click', () => move(-1, 0));
  $('view-next').addEventListener('click', () => move(1, 0));
  $('view-up').addEventListener('click', () => move(0, -1));
  $('view-down').addEventListener('click', () => move(0, 1));
  view.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) { event.preventDefault(); move(...step); }
  });
  view.addEventListener('click', (event) => { if (event.target === view) view.close(); });
  const copy = async (button, source) => {
    const text = source.textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; } catch {
      getSelection().selectAllChildren(source);
      button.textContent = document.execCommand('copy') ? 'Copied' : 'Selected';
    }
  };
  $('copy').addEventListener('click', () => copy($('copy'), $('cmd')));
  $('copy-job').addEventListener('click', () => copy($('copy-job'), $('cmd-job')));
  document.addEventListener('click', (event) => {
    const found = event.target.closest?.('a.tile, a.open, svg .pt');
    const job = found && jobs.get(found.dataset.job);
    if (!job || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(job, Number(found.dataset.k ?? 0));
  });
}
