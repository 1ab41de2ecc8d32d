// The value beneath the pointer, or beside the last one by arrow keys.
const WORDS = ["loss", "smoothed", "validation"];

export const plots = (element) => {
  let at = -1;
  const show = (plot, index) => {
    const points = JSON.parse(plot.dataset.points);
    at = Math.min(points.length - 1, Math.max(0, index));
    const [step, ...values] = points[at];
    const told = values.map((v, i) => v !== null && `${WORDS[i]} ${v}`).filter(Boolean);
    plot.querySelector("output").textContent = `Update ${step}: ${told.join(", ")}`;
    const cursor = plot.querySelector(".cursor");
    cursor.hidden = false;
    cursor.style.left = `${(100 * step) / Math.max(1, points.at(-1)[0])}%`;
  };
  const hide = (plot) => {
    plot.querySelector("output").textContent = "";
    plot.querySelector(".cursor").hidden = true;
  };
  element.addEventListener("pointermove", (event) => {
    const plot = event.target.closest(".plot");
    const box = plot?.querySelector("svg").getBoundingClientRect();
    if (!box?.width) return;
    const points = JSON.parse(plot.dataset.points);
    const step = ((event.clientX - box.left) / box.width) * points.at(-1)[0];
    let near = 0;
    points.forEach(([one], index) => {
      if (Math.abs(one - step) < Math.abs(points[near][0] - step)) near = index;
    });
    show(plot, near);
  });
  element.addEventListener("pointerout", (event) => {
    const plot = event.target.closest(".plot");
    if (plot && !plot.contains(event.relatedTarget)) hide(plot);
  });
  element.addEventListener("keydown", (event) => {
    const plot = event.target.closest(".plot");
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (!plot || !step) return;
    event.preventDefault();
    show(plot, at + step);
  });
};
