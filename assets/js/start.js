// The picture to start from can be taken away again.
element.addEventListener("click", (event) => {
  if (!event.target.closest("[data-remove]")) return;
  props.value = "";
  trigger("input");
  document.querySelector("#upload button, #upload")?.focus();
});
