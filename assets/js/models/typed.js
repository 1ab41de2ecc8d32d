// What stands in the fields over the selected LoRAs, by their names.
export const typed = () => {
  const fields = document.querySelectorAll("#lora-bench [data-field]");
  return Object.fromEntries([...fields].map((one) => [one.dataset.field, one.value]));
};
