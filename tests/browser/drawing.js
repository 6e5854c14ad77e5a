// For a page that holds plotly.js: draws figures as notebooks do, and reads every text that they can show.

const HOVERED = 8; // points of a trace at most: as many as there are names, or more

function addPlace() {
  const place = document.body.appendChild(document.createElement("div"));
  place.style.width = "900px";
  return place;
}

// The views of widgets by the widgets' own code, static figures by plotly.js alone.
async function drawFigures({ code, views, statics }) {
  globalThis.nmlKitPlotly = Plotly;
  const { render } = (await import(`data:text/javascript;charset=utf-8,${encodeURIComponent(code)}`)).default;
  for (const state of views) {
    const model = { get: (name) => state[name], on() {}, off() {}, send() {} };
    await render({ model, el: addPlace() });
  }
  for (const figure of statics) {
    const { data, layout } = JSON.parse(figure);
    await Plotly.newPlot(addPlace(), data, layout);
  }
}

const textsOf = (root, selector) => [...root.querySelectorAll(selector)].map((node) => node.textContent);

// Points of a trace as plotly.js takes them: those of a matrix by column and row, off the diagonal and on it.
function pointsOf(trace) {
  const count = (trace.z ?? trace.y ?? []).length;
  const step = Math.max(1, trace.mode?.startsWith("lines") ? count : Math.ceil(count / HOVERED)); // a line has one name
  const places = [...Array(count).keys()].filter((place) => place % step === 0);
  if (trace.type !== "heatmap") return places.map((pointNumber) => ({ pointNumber }));
  return places.flatMap((yval) => [{ yval, xval: yval }, { yval, xval: (yval + 1) % count }]);
}

function hoverTexts(figure) {
  const found = [];
  for (const [curveNumber, trace] of figure._fullData.entries()) {
    if (trace.visible !== true || trace.hoverinfo === "skip") continue;
    for (const point of pointsOf(trace)) {
      Plotly.Fx.unhover(figure); // else plotly.js would look again only after 50 milliseconds
      Plotly.Fx.hover(figure, [{ curveNumber, ...point }], (trace.xaxis ?? "x") + (trace.yaxis ?? "y"));
      found.push(...textsOf(figure, ".hoverlayer text"));
    }
  }
  return found;
}

// Opens each menu; then does what each of its entries, and each step of a slider, does.
async function controlTexts(figure) {
  const found = [];
  for (const header of figure.querySelectorAll(".updatemenu-header")) {
    header.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    found.push(...textsOf(figure, ".updatemenu-dropdown-button text"));
  }
  const { updatemenus = [], sliders = [] } = figure._fullLayout;
  for (const { method, args } of [...updatemenus.flatMap((menu) => menu.buttons), ...sliders.flatMap((one) => one.steps)]) {
    await Plotly[method](figure, ...args);
    found.push(...textsOf(figure, "svg text"), ...hoverTexts(figure));
  }
  return found;
}

async function textsOfFigure(figure) {
  return {
    drawn: textsOf(figure, "svg text"),
    ticks: textsOf(figure, ".xaxislayer-above text, .yaxislayer-above text"),
    hovers: hoverTexts(figure),
    menus: await controlTexts(figure),
  };
}

function allFigureTexts() {
  return Promise.all([...document.querySelectorAll(".js-plotly-plot")].map(textsOfFigure));
}

function pageTexts() {
  const copy = document.body.cloneNode(true);
  copy.querySelectorAll("script, style, svg").forEach((node) => node.remove());
  const attributes = ["alt", "title", "aria-label"];
  const named = [...document.querySelectorAll(attributes.map((name) => `[${name}]`).join())];
  return [copy.textContent, ...named.flatMap((node) => attributes.map((name) => node.getAttribute(name) ?? ""))];
}
