"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const palettes = read("palettes"), figures = read("figures"), details = read("details");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  // Colours are names until the theme is known.
  const resolve = (value, palette) => {
    if (typeof value === "string") return value[0] === "@" && value.slice(1) in palette ? palette[value.slice(1)] : value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((each) => resolve(each, palette));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, resolve(each, palette)]));
    return value;
  };
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const draw = ({ id, panel }) => {
    const place = document.getElementById(id);
    const palette = palettes[dark.matches && !printing ? "dark" : "light"];
    const { data, layout } = resolve(panel, palette);
    if (matchMedia("(max-width: 560px)").matches) for (const trace of data) if (trace.colorbar) trace.showscale = false;
    return Plotly.react(place, data, { ...layout, autosize: true }, config);
  };
  const drawAll = async () => {
    for (const each of figures) {
      await draw(each);
      const place = document.getElementById(each.id);
      if (!place.dataset.drawn) {
        place.dataset.drawn = "yes";
        place.on("plotly_click", (event) => open(event.points[0].customdata));
      }
      await new Promise((next) => setTimeout(next));
    }
    document.body.dataset.drawn = figures.length;
  };

  // A trial's own page.
  const dialog = document.getElementById("detail");
  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const code = (text) => {
    const box = element("div", undefined, "code"), button = element("button", "copy", "copy"), pre = element("pre", text);
    button.type = "button";
    pre.tabIndex = 0;
    box.append(button, pre);
    return box;
  };
  const list = (entries) => {
    const facts = element("dl", undefined, "facts");
    for (const [name, value] of entries) {
      const row = element("div");
      row.append(element("dt", name), element("dd", value));
      facts.append(row);
    }
    return facts;
  };
  const open = (id) => {
    const trial = details.trials[id];
    if (!trial) return;
    document.getElementById("detail-title").textContent = `Trial ${id}: ${trial.outcome}`;
    const parts = [list(trial.facts)];
    if (trial.reason) parts.push(element("h3", "Reason"), code(trial.reason));
    parts.push(element("h3", "Train it again, from this sweep's folder"), code(details.again + id));
    parts.push(element("h3", "The same from the code alone"), code([...details.common, ...trial.alone].join(" ")));
    if (trial.metrics.length) {
      const metrics = element("details");
      metrics.append(element("summary", "Its last metrics"), list(trial.metrics));
      parts.push(metrics);
    }
    document.getElementById("detail-body").replaceChildren(...parts);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  document.addEventListener("click", async (event) => {
    const trial = event.target.closest("button.trial");
    if (trial) open(trial.dataset.trial);
    if (event.target === dialog) dialog.close();
    const copy = event.target.closest("button.copy");
    if (copy) {
      const pre = copy.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(pre.textContent);
        copy.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(pre);
        copy.textContent = "selected";
      }
      setTimeout(() => (copy.textContent = "copy"), 1500);
    }
  });

  // The table of trials.
  const table = document.getElementById("trials");
  if (table) {
    const body = table.tBodies[0], rows = [...body.rows];
    const outcome = document.getElementById("outcome"), words = document.getElementById("words");
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, index) => {
        const fits = (!outcome.value || row.dataset.outcome === outcome.value) && wanted.every((word) => texts[index].includes(word));
        row.hidden = !fits;
        count += fits;
      });
      document.getElementById("shown").textContent = count === rows.length ? `${count} trials` : `${count} of ${rows.length} trials`;
    };
    outcome.addEventListener("change", filter);
    words.addEventListener("input", filter);
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, column) => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
    };
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((each) => each.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map(rows.map((row) => [row, key(row, column)]));
      const missing = (value) => value === "" || value === "–" || Number.isNaN(value);
      const sorted = [...rows].sort((one, other) => {
        const a = keys.get(one), b = keys.get(other);
        if (missing(a) || missing(b)) return missing(a) - missing(b); // always last
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return up ? order : -order;
      });
      body.append(...sorted);
    }));
  }

  const redraw = () => { drawAll(); };
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; figures.forEach(draw); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  const fromHash = () => { const found = /^#trial-(\d+)$/.exec(location.hash); if (found) open(found[1]); };
  addEventListener("hashchange", fromHash);
  drawAll();
  fromHash();
})();
