// Whoever writes a seed wants that seed; whoever empties the box wants new ones.
document.addEventListener("input", (event) => {
  const fresh = document.querySelector("#new_seed input");
  if (!fresh || !event.target.closest?.("#seed")) return;
  if (fresh.checked === Boolean(event.target.value.trim())) fresh.click();
});

// A prompt is laid out in the direction of its own script.
for (const kind of ["focusin", "input"])
  document.addEventListener(kind, (event) => {
    if (event.target.matches?.("#form textarea")) event.target.dir = "auto";
  });

// A picture dropped on the form is a picture to start from.
const files = (event) => [...(event.dataTransfer?.items ?? [])].some((i) => i.kind === "file");
document.addEventListener("dragover", (event) => {
  const form = event.target.closest?.("#form");
  if (!form || !files(event)) return;
  event.preventDefault();
  form.dataset.drop = "";
});
document.addEventListener("dragleave", (event) => {
  const form = event.target.closest?.("#form");
  if (form && !form.contains(event.relatedTarget)) delete form.dataset.drop;
});
document.addEventListener("drop", (event) => {
  const form = event.target.closest?.("#form");
  if (!form || !files(event)) return;
  event.preventDefault();
  delete form.dataset.drop;
  const input = document.querySelector("#start-card input[type=file]");
  const image = [...event.dataTransfer.files].find((file) => file.type.startsWith("image/"));
  if (!input || !image) return;
  const list = new DataTransfer();
  list.items.add(image);
  input.files = list.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
