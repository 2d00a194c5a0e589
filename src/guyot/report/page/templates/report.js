"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // -- light and dark ------------------------------------------------------------------------

  const toggle = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  const memory = {
    get() { try { return localStorage.getItem("guyot-theme") ?? "auto"; } catch { return "auto"; } },
    set(value) { try { localStorage.setItem("guyot-theme", value); } catch { /* a private window */ } },
  };
  const paint = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    toggle.textContent = `Theme: ${theme}`;
    toggle.dataset.now = theme;
  };
  paint(themes.includes(memory.get()) ? memory.get() : "auto");
  toggle.addEventListener("click", () => {
    const next = themes[(themes.indexOf(toggle.dataset.now) + 1) % themes.length];
    memory.set(next);
    paint(next);
  });

  // -- the tooltip ---------------------------------------------------------------------------

  const tip = document.getElementById("tip");
  const made = (tag, ...inside) => {
    const element = document.createElement(tag);
    element.append(...inside);
    return element;
  };
  const list = (pairs) =>
    made("dl", ...pairs.flatMap(([name, value]) => [made("dt", name), made("dd", value)]));
  const table = (heads, lines) => made(
    "table",
    made("tr", ...["", ...heads].map((head) => made("th", head))),
    ...lines.map(([name, values]) => made("tr", made("th", name), ...values.map((value) => made("td", value)))),
  );
  const say = (title, pairs) => [title, ...pairs.map(([name, value]) => `${name} ${value}`)].join(", ");
  const live = document.getElementById("live");
  const announce = (title, pairs) => { live.textContent = say(title, pairs); };
  const show = (x, y, title, pairs) => put(x, y, title, list(pairs));
  const put = (x, y, title, body) => {
    tip.replaceChildren(made("b", title), body);
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(x + 16, root.clientWidth - width - 8);
    const top = y + 16 + height > innerHeight ? y - 12 - height : y + 16;
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
    tip.style.visibility = "visible";
  };
  let again = null; // what a tooltip of the keyboard shows; it stays when the page scrolls
  const hide = () => { tip.style.visibility = "hidden"; again = null; };
  const keep = (tell) => { tell(); again = tell; };
  const beside = (element) => {
    const box = element.getBoundingClientRect();
    return [Math.min(box.right, root.clientWidth - 40) - 8, box.top + box.height / 2];
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", () => (again ? again() : hide()), { passive: true });

  // -- runs on and off -----------------------------------------------------------------------

  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const twin of all(`.legend button[data-run="${button.dataset.run}"]`))
        twin.setAttribute("aria-pressed", on);
      for (const part of all(`svg [data-run="${button.dataset.run}"]`))
        part.classList.toggle("hidden", !on);
    });
  }
  const visible = (run) =>
    document.querySelector(`.legend button[data-run="${run}"]`)?.getAttribute("aria-pressed") !== "false";

  // -- marks that only have words ------------------------------------------------------------

  for (const mark of all(".mark")) {
    const tell = (x, y) => show(x, y, mark.dataset.title, JSON.parse(mark.dataset.pairs));
    mark.addEventListener("pointermove", (event) => tell(event.clientX, event.clientY));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => { if (mark.matches(":focus-visible")) keep(() => tell(...beside(mark))); });
    mark.addEventListener("blur", hide);
  }

  // -- curves: one cursor through all panels -------------------------------------------------

  const curves = document.getElementById("curves");
  if (curves) {
    const { left, right, last, panels, names } = data.curves;
    const line = curves.querySelector(".cursor");
    const nearest = (xs, x) => {
      let best = -1;
      xs.forEach((value, place) => {
        if (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x)) best = place;
      });
      return best;
    };
    let epoch = last;
    const titles = panels.map(({ title }) => title);
    const read = () => names.flatMap((name, run) => visible(run)
      ? [[name, panels.map(({ x, text }) => text[run][nearest(x[run], epoch)] ?? "–")]]
      : []);
    const paired = ([, values]) => titles.map((title, place) => [title, values[place]]);
    const move = (to, x, y) => {
      epoch = Math.min(last, Math.max(0, to));
      const box = curves.getBoundingClientRect();
      const at = left + (epoch / last) * (right - left);
      line.setAttribute("transform", `translate(${at} 0)`);
      line.style.visibility = "visible";
      const scale = box.width / curves.viewBox.baseVal.width;
      const lines = read(), several = names.length > 1;
      put(
        x ?? box.left + at * scale, y ?? Math.max(box.top, 60) + 20, `epoch ${epoch.toFixed(2)}`,
        several ? table(titles, lines) : list(paired(lines[0])),
      );
    };
    const press = (to) => {
      keep(() => move(to));
      const spoken = (line) => paired(line).map((pair) => pair.join(" ")).join(", ");
      announce(`epoch ${epoch.toFixed(2)}`, read().map((line) => [`${line[0]}:`, spoken(line)]));
    };
    const leave = () => { line.style.visibility = "hidden"; hide(); };
    curves.addEventListener("pointermove", (event) => {
      const box = curves.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * curves.viewBox.baseVal.width;
      if (at < left - 6 || at > right + 6) return leave();
      move(((at - left) / (right - left)) * last, event.clientX, event.clientY);
    });
    curves.addEventListener("pointerleave", leave);
    curves.addEventListener("blur", leave);
    curves.addEventListener("focus", () => { if (curves.matches(":focus-visible")) press(epoch); });
    curves.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? last / 10 : last / 100;
      const to = { ArrowLeft: epoch - step, ArrowRight: epoch + step, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      press(to);
    });
  }

  // -- the network: rows with a roving focus, and a slider through discovery -------------------

  const nats = (value) => `${Number(value.toPrecision(2))} nats`;
  const part = (value, whole) => `${(whole ? (100 * value) / whole : 0).toFixed(0)} %`;

  for (const figure of all(".network")) {
    const { steps, groups, layers, blocks } = data.networks[figure.dataset.network];
    const marks = all(".block", figure);
    const slider = figure.querySelector("input"), output = figure.querySelector("output");
    let now = steps.length - 1;

    const pairs = (block) => {
      const found = [];
      if (block.layer !== null) {
        const layer = layers[block.layer];
        const theta = layer.theta[now];
        found.push(["layer θ", theta < 0 ? "gone" : `${theta} %`]);
        if (theta >= 0 && now < steps.length - 1)
          found.push(["layer benefit", nats(layer.benefit[now])], ["layer price", nats(layer.price[now])]);
      }
      for (const number of block.groups) {
        const { name, size, stride, expected, price, earned } = groups[number];
        const short = block.groups.length > 1 ? `${name.split(".").at(-1)} ` : "";
        found.push([`${short}units expected`, `${Number(expected[now].toFixed(1))} of ${size}`]);
        if (stride > 1) found.push([`${short}entries of a unit`, stride]);
        found.push([`${short}mean θ`, part(expected[now], size)]);
        if (now < steps.length - 1 && expected[now] > 0)
          found.push(
            [`${short}benefit of all units`, nats(earned[now])],
            [`${short}price of a unit`, nats(price[now])],
          );
      }
      found.push(["MACs in the end", block.macs]);
      return found;
    };
    const title = (block) => `${block.name}${steps.length ? `, step ${steps[now]}` : ""}`;

    marks.forEach((mark, place) => {
      const block = blocks[place];
      mark.addEventListener("pointermove", (e) => show(e.clientX, e.clientY, title(block), pairs(block)));
      mark.addEventListener("pointerleave", hide);
      mark.addEventListener("blur", hide);
      mark.addEventListener("focus", () => {
        mark.setAttribute("aria-label", say(title(block), pairs(block)));
        if (mark.matches(":focus-visible")) keep(() => show(...beside(mark), title(block), pairs(block)));
      });
      mark.addEventListener("keydown", (event) => {
        const to = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: marks.length - 1 }[event.key];
        if (!marks[to]) return;
        event.preventDefault();
        marks[place].tabIndex = -1;
        marks[to].tabIndex = 0;
        marks[to].focus();
      });
    });

    const end = all(".after-bar[data-group], .units[data-group]", figure).map((element) => [
      element, element.getAttribute("width"), element.textContent,
    ]);
    const draw = () => {
      const over = now === steps.length - 1;
      for (const [element, width, text] of end) {
        const { size, expected } = groups[element.dataset.group];
        if (width === null)
          element.textContent = over ? text : `${size} → ${expected[now].toFixed(1)}`;
        else
          element.setAttribute("width", over ? width : (element.dataset.full * expected[now]) / size);
      }
      marks.forEach((mark, place) => {
        const { layer } = blocks[place];
        if (layer !== null) mark.classList.toggle("gone", layers[layer].theta[now] < 0);
      });
      output.textContent = over ? "as it ended" : `step ${steps[now]}: widths that are expected`;
    };
    slider?.addEventListener("input", () => { now = Number(slider.value); draw(); });
  }

  // -- keep probabilities: a cell cursor in every map ------------------------------------------

  for (const svg of all(".heat svg")) {
    const run = data.heats[svg.dataset.network];
    const { title, names, went, theta } = run.maps[Number(svg.dataset.map)];
    const cell = svg.querySelector(".cell");
    const { plot, height } = data.heat;
    const columns = run.steps.length, moving = Math.max(1, columns - 1);
    const first = run.steps[0], final = run.steps.at(-1);
    let row = 0, column = 0, codes = null;

    const at = () => {
      codes ??= Uint8Array.from(atob(theta), (letter) => letter.charCodeAt(0));
      return codes[row * columns + column];
    };
    const words = () => {
      const value = at();
      const found = [["step", run.steps[column]], ["θ", value === 255 ? "gone" : `${value} %`]];
      if (went[row] !== null) found.push(["went at step", went[row]]);
      return [`${title}, ${names[row]}`, found];
    };
    const place = () => {
      const from = ((run.steps[column] - first) / Math.max(1, final - first)) * plot;
      const settled = column === columns - 1;
      const to = settled ? 0 : ((run.steps[column + 1] - first) / Math.max(1, final - first)) * plot;
      cell.setAttribute("x", settled ? plot + 3 : from);
      cell.setAttribute("width", settled ? data.heat.settled : Math.max(1, to - from));
      cell.setAttribute("y", (row * height) / names.length);
      cell.setAttribute("height", height / names.length);
      cell.style.visibility = "visible";
    };
    const leave = () => { cell.style.visibility = "hidden"; hide(); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
      const x = ((event.clientX - box.left) / box.width) * view.width + view.x;
      const y = ((event.clientY - box.top) / box.height) * view.height + view.y;
      if (y < 0 || y >= height || x < 0) return leave();
      row = Math.min(names.length - 1, Math.floor((y / height) * names.length));
      const step = first + (x / plot) * (final - first);
      column = x > plot + 1 ? columns - 1 : run.steps.findLastIndex((value, i) => value <= step && i < moving);
      column = Math.max(0, column);
      place();
      show(event.clientX, event.clientY, ...words());
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    const tell = () => {
      place();
      keep(() => show(...beside(cell), ...words()));
      announce(...words());
    };
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) tell(); });
    svg.addEventListener("keydown", (event) => {
      const [down, right] = {
        ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
        Home: [0, -columns], End: [0, columns],
      }[event.key] ?? [];
      if (down === undefined) return;
      event.preventDefault();
      row = Math.min(names.length - 1, Math.max(0, row + down));
      column = Math.min(columns - 1, Math.max(0, column + right));
      tell();
    });
  }
})();
