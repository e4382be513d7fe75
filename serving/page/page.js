// The page of the service: three views, of which the address names one.

import * as catalogue from "./catalogue.js";
import { by, complain, say } from "./dom.js";
import * as health from "./health.js";
import * as lists from "./lists.js";
import * as service from "./service.js";

const VIEWS = ["lists", "catalogue", "health"];

function show() {
  const wanted = VIEWS.find((name) => `#${name}` === location.hash) ?? VIEWS[0];
  complain();
  say("");
  for (const name of VIEWS) by(name).hidden = name !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  if (wanted === "catalogue") catalogue.refresh();
  health.watch(wanted === "health");
}

/** Everything from anew, as after a change of the catalogue or of the key. */
async function renew() {
  try {
    const about = await service.about();
    by("serving").textContent = `${about.model}, catalogue version ${about.catalogue_version}`;
    by("beside-choice").hidden = !about.beside;
    by("beside-name").textContent = about.beside ?? "";
    await lists.renew();
  } catch (error) {
    complain(error);
  }
}

lists.start();
health.start();
catalogue.start(renew);
by("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  service.useKey(by("key").value);
  await renew();
  show();
});
addEventListener("hashchange", show);
show();
renew();
