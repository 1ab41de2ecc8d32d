// Every button under [data-do] asks the studio; copying is done here.
let pressed = "";
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  pressed = button.dataset.do;
  if (pressed === "copy") copy(button);
  else trigger("act", { do: pressed, name: "" });
});
const copy = async (button) => {
  const report = element.querySelector(".report");
  try {
    await navigator.clipboard.writeText(report.dataset.text);
    button.textContent = "Copied";
  } catch {
    // Without the clipboard, what is marked can still be copied by hand.
    getSelection().selectAllChildren(report.querySelector("ul"));
    button.textContent = "Marked: press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2500);
};
// Whoever asked for the report is led to it.
watch("value", () => {
  const head = pressed === "examine" && element.querySelector(".report h2");
  pressed = "";
  if (!head) return;
  head.focus({ preventScroll: true });
  head.closest(".report").scrollIntoView({ block: "nearest", behavior: "smooth" });
});
