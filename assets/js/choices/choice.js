// One native control stands in the markup; its value is the value of the component.

export default function choice({ element, props, trigger, watch }) {
  const show = () => {
    const select = element.querySelector("select");
    if (select) select.value = props.value;
    for (const radio of element.querySelectorAll("input[type=radio]"))
      radio.checked = radio.value === props.value;
    // An own size: width and height of whatever is chosen.
    const sides = props.value.split("x");
    element.querySelectorAll("input[type=number]").forEach((side, i) => (side.value = sides[i]));
  };
  // What can be painted: each side a multiple of the step within the limits.
  const ownSize = () =>
    [...element.querySelectorAll("input[type=number]")]
      .map((side, i) => {
        const [low, high, step] = [side.min, side.max, side.step].map(Number);
        const typed = Number(side.value) || Number(props.value.split("x")[i]) || low;
        return Math.min(high, Math.max(low, Math.round(typed / step) * step));
      })
      .join("x");
  show();
  watch(["value", "markup"], show);
  element.addEventListener("change", (event) => {
    props.value = event.target.type === "number" ? ownSize() : event.target.value;
    show();
    trigger("input");
  });
}
