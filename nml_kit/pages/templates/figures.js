"use strict";
const CHANGES = ["restyle", "relayout", "update"]; // what a choice may do to its figure

function plainText(text) {
  return new DOMParser().parseFromString(String(text ?? ""), "text/html").body.textContent;
}

function change(box, { method, args }) {
  if (CHANGES.includes(method)) Plotly[method](box, ...structuredClone(args ?? []));
}

function menuControl(box, { buttons, active }) {
  const select = document.createElement("select");
  buttons.forEach((button, place) => select.add(new Option(plainText(button.label), place, false, place === (active ?? 0))));
  select.addEventListener("change", () => change(box, buttons[select.value]));
  select.setAttribute("aria-label", "what the figure shows");
  return select;
}

function sliderControl(box, { steps, active, currentvalue }) {
  const label = document.createElement("label"), range = document.createElement("input"), value = document.createElement("output");
  Object.assign(range, { type: "range", min: 0, max: steps.length - 1, value: active ?? 0 });
  const tell = () => { value.textContent = plainText(steps[range.value].label); range.ariaValueText = value.textContent; };
  range.addEventListener("input", () => { tell(); change(box, steps[range.value]); });
  tell();
  label.append(plainText(currentvalue?.prefix), range, value);
  return label;
}

// plotly draws its menus and sliders where no keyboard and no thumb reaches them: the page has its own in their place.
function takeControls(box, layout) {
  const menus = (layout.updatemenus ?? []).map(menu => menuControl(box, menu));
  const sliders = (layout.sliders ?? []).map(slider => sliderControl(box, slider));
  if (!menus.length && !sliders.length) return;
  const row = document.createElement("div");
  row.className = "controls";
  row.append(...menus, ...sliders);
  box.before(row);
  Object.assign(layout, { updatemenus: [], sliders: [] });
}

async function draw(box) {
  try {
    const figure = JSON.parse(box.nextElementSibling.textContent);
    if (box.dataset.lazy === undefined) takeControls(box, figure.layout);
    await Plotly.newPlot(box, figure.data, figure.layout, figure.config);
  } catch (error) {
    box.textContent = "This figure cannot be drawn: " + error;
  }
}

function drawAll() {
  const whenSeen = new IntersectionObserver((entries, observer) => {
    for (const entry of entries.filter(entry => entry.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "200px" });
  for (const box of document.querySelectorAll(".nml-figure")) {
    if (box.dataset.lazy === undefined) draw(box); else whenSeen.observe(box);
  }
}

document.addEventListener("DOMContentLoaded", drawAll); // by then a deferred plotly.js has run
