// Photos on their way to the studio: dropped, in folders too, or chosen; one after another.
const MOST = 2000;

const read = (entry) =>
  new Promise((done) => {
    if (entry.isFile) {
      entry.file((file) => done([[entry.fullPath.replace(/^\//, ""), file]]), () => done([]));
      return;
    }
    const reader = entry.createReader();
    const found = [];
    const more = () =>
      reader.readEntries(
        async (entries) => {
          if (!entries.length || found.length > MOST) return done(found);
          for (const one of entries) found.push(...(await read(one)));
          more();
        },
        () => done(found),
      );
    more();
  });

// What was dropped, with the folders that it lay in.
export const dropped = async (transfer) => {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => [file.name, file]);
  const found = [];
  for (const entry of entries) found.push(...(await read(entry)));
  return found;
};

// Sends the files; tells how far it is, and answers what was refused, one sentence a line.
export const bring = async (preparation, files, tell) => {
  const refused = [];
  let done = 0;
  // A caption comes right behind its photo.
  const place = ([name]) => name.replace(/\.(txt|caption)$/i, ".\uffff");
  const ordered = files.toSorted((a, b) => (place(a) < place(b) ? -1 : 1));
  for (const [name, file] of ordered) {
    if (name.split("/").some((part) => part.startsWith("."))) continue;
    tell(`Uploading ${(done += 1)} of ${files.length}`);
    const address = new URL(
      `studio/trainings/${preparation}?name=${encodeURIComponent(name)}`,
      document.baseURI,
    );
    try {
      const answer = await fetch(address, { method: "POST", body: file });
      if (!answer.ok) refused.push(await answer.text());
    } catch {
      refused.push(`“${name}” could not be uploaded: the studio did not answer.`);
    }
  }
  return refused.slice(0, 10).join(" ");
};
