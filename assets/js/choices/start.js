// The picture to start from can be taken away again.

export default function start({ element, props, trigger }) {
  element.addEventListener("click", (event) => {
    if (!event.target.closest("[data-remove]")) return;
    props.value = "";
    trigger("input");
    document.querySelector("#upload button, #upload")?.focus();
  });
}
