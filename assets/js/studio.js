// The theme, and the keys that work everywhere on the page.
(() => {
  const root = document.documentElement;
  const remember = (theme) => {
    try { localStorage.setItem("pixart-studio-theme", theme); } catch { /* private window */ }
  };
  const apply = () => {
    const light = root.dataset.theme === "light";
    if (document.body.classList.contains("dark") === light)
      document.body.classList.toggle("dark", !light);
    for (const button of document.querySelectorAll("[data-theme-toggle]"))
      button.setAttribute("aria-pressed", String(light));
  };
  // gradio follows the system's theme when it starts; ours is the one that was chosen.
  new MutationObserver(apply).observe(document.body, { attributeFilter: ["class"] });
  apply();

  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    root.dataset.theme = root.dataset.theme === "light" ? "dark" : "light";
    remember(root.dataset.theme);
    apply();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const button = document.querySelector("button#generate, #generate button");
    if (!button || button.disabled) return;
    event.preventDefault();
    event.stopPropagation();
    button.click();
  }, true);

  // Each tab is found again where it was left.
  const places = {};
  let tab = "";
  const chosen = () => document.querySelector("#rail [role=tab][aria-selected=true]")?.id ?? "";
  addEventListener("scroll", () => {
    tab ||= chosen();
    if (tab && chosen() === tab) places[tab] = scrollY;
  }, { passive: true });
  new MutationObserver(() => {
    const now = chosen();
    if (!now || now === tab) return;
    // Read before the browser moves by itself to fit the other page.
    const to = places[now] ?? 0;
    tab = now;
    if (window.studioReady) requestAnimationFrame(() => scrollTo(0, to));
  }).observe(document.body, { subtree: true, attributeFilter: ["aria-selected"] });

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

  // gradio puts the number of an answer before the sentence, and names kinds of files in its own way.
  const plain = (text) => text
    .replace(/^HTTP \d+: /, "")
    .replace(
      /^Invalid file type: ([^]*)\. Only [^]* allowed\.$/,
      (_, name) => `“${name}” is not a picture that can be read. Use a PNG, JPEG or WebP file.`,
    );
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes)
        for (const text of node.querySelectorAll?.("[data-testid=toast-text]") ?? []) {
          const said = plain(text.textContent.trim());
          if (said !== text.textContent.trim()) text.textContent = said;
        }
  }).observe(document.body, { childList: true, subtree: true });

  // A studio that ended leaves its last word on the page: say that it does not answer.
  const silence = document.createElement("p");
  silence.className = "silence";
  silence.setAttribute("role", "alert");
  let missed = 0;
  setInterval(async () => {
    try {
      await fetch("studio/alive", { cache: "no-store", signal: AbortSignal.timeout(4000) });
      missed = 0;
    } catch { missed += 1; }
    const place = document.getElementById("status");
    if (missed === 2 && place && !silence.isConnected) {
      root.dataset.silent = "";
      silence.textContent = "The studio does not answer. It was closed, or is very busy; this page goes on by itself once it is back.";
      place.append(silence);
    } else if (!missed && silence.isConnected) {
      delete root.dataset.silent;
      silence.remove();
    }
  }, 2500);

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
})();
