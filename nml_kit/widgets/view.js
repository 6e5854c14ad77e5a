// A plotly figure that is always what Python says: each change draws the whole figure, of which plotly.js redraws what differs.

async function load(model) {
  const library = await model.widget_manager.get_model(model.get("library").replace("IPY_MODEL_", ""));
  const module = { exports: {} };
  new Function("module", library.get("code"))(module);
  return module.exports;
}

function tell(model, kind, { points: [point] }) {
  const index = point.pointNumber ?? point.pointIndex;
  model.send({ kind, trace: point.curveNumber, index, x: point.x, y: point.y });
}

export default {
  async render({ model, el }) {
    const place = el.appendChild(document.createElement("div"));
    const Plotly = await (globalThis.nmlKitPlotly ??= load(model)); // once for a page, however many figures there are
    const draw = async () => {
      const { data, layout } = JSON.parse(model.get("json"));
      el.setAttribute("role", "figure");
      el.setAttribute("aria-label", model.get("label"));
      await Plotly.react(place, data, layout, { displaylogo: false, plotlyServerURL: "" });
    };
    await draw();
    place.on("plotly_click", (event) => tell(model, "click", event));
    place.on("plotly_hover", (event) => tell(model, "hover", event));
    model.on("change:json", draw);
    let width = 0; // so that it is looked at once more: the page may have moved while plotly.js came
    const observer = new ResizeObserver(([entry]) => {
      if (!entry.contentRect.width || entry.contentRect.width === width) return;
      width = entry.contentRect.width;
      Plotly.Plots.resize(place);
    });
    observer.observe(el);
    return () => {
      observer.disconnect();
      model.off("change:json", draw);
      Plotly.purge(place);
    };
  },
};
