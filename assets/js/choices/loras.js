// LoRAs to add, each with its weight; the value is "name:0.8, other".

export default function loras({ element, props, trigger, watch }) {
  const rows = () => [...element.querySelectorAll("[data-lora]")];
  const weightOf = (row) => row.querySelector("input[type=number]");
  const show = () => {
    const chosen = new Map(
      props.value
        .split(",")
        .map((part) => part.trim().split(":"))
        .filter(([name]) => name)
        .map(([name, weight]) => [name, weight ?? "1"]),
    );
    for (const row of rows()) {
      const on = chosen.has(row.dataset.lora);
      row.querySelector("input[type=checkbox]").checked = on;
      row.toggleAttribute("data-on", on);
      if (on && document.activeElement !== weightOf(row))
        weightOf(row).value = chosen.get(row.dataset.lora);
    }
  };
  const written = () =>
    rows()
      .filter((row) => row.querySelector("input[type=checkbox]").checked)
      .map((row) => {
        const weight = Number(weightOf(row).value || 1);
        return weight === 1 ? row.dataset.lora : `${row.dataset.lora}:${weight}`;
      })
      .join(", ");
  show();
  watch(["value", "markup"], show);
  element.addEventListener("change", () => {
    props.value = written();
    show();
    trigger("input");
  });
}
