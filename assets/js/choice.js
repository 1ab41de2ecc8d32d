// One native control stands in the markup; its value is the value of the component.
const show = () => {
  const select = element.querySelector("select");
  if (select) select.value = props.value;
  for (const radio of element.querySelectorAll("input[type=radio]"))
    radio.checked = radio.value === props.value;
};
show();
watch(["value", "markup"], show);
element.addEventListener("change", (event) => {
  props.value = event.target.value;
  trigger("input");
});
