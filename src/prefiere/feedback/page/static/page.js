// The keys, the clock, and votes that are sent again until the server has them. Without this script the form works alone.
"use strict";
(() => {
  const main = document.getElementById("main");
  const status = document.getElementById("status");
  let busy = false, shown = performance.now(), input = "key", alive = 0;

  const say = (text, bad = false) => { status.textContent = text; status.classList.toggle("bad", bad); };
  const form = () => document.getElementById("vote");
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const typing = (e) => e.target.closest && e.target.closest("textarea, input:not([type=hidden]):not([type=checkbox])");

  async function send(theForm, button) {
    if (busy) return;
    busy = true;
    const data = new URLSearchParams(new FormData(theForm));
    if (button && button.name) data.set(button.name, button.value);
    if (data.has("ms")) { data.set("ms", String(Math.round(performance.now() - shown))); data.set("input", input); }
    say(theForm.dataset.sending || "…");
    for (let pause = 500; ; pause = Math.min(8000, pause * 2)) {
      try {
        const answer = await fetch(theForm.action, { method: "POST", body: data, headers: { "X-Part": "1" } });
        if (answer.status === 502 || answer.status === 503 || answer.status === 504) throw new Error("later");
        const text = await answer.text();
        const notice = decodeURIComponent(answer.headers.get("X-Notice") || "");
        if (answer.headers.has("X-Replace")) {
          main.innerHTML = text;
          shown = performance.now();
          const title = document.getElementById("prompt-title");
          if (title) title.focus({ preventScroll: true });
          window.scrollTo(0, 0);
        }
        say(notice || (answer.ok ? "" : text.slice(0, 300)), !answer.ok);
        break;
      } catch (error) {
        say(theForm.dataset.retry || "…", true);
        await wait(pause);
      }
    }
    busy = false;
  }

  document.addEventListener("submit", (e) => {
    if (e.target.id === "ask") { say(e.target.dataset.sending); return; }
    if (!e.target.action.endsWith("/vote")) return;
    e.preventDefault();
    send(e.target, e.submitter);
  });
  document.addEventListener("pointerdown", (e) => { input = e.pointerType === "touch" ? "touch" : "mouse"; });

  function press(selector) {
    const button = main.querySelector(selector);
    if (!button || button.disabled) return;
    input = "key";
    if (button.form) send(button.form, button); else button.click();
  }
  function open(name, focus) {
    const details = main.querySelector("details." + name);
    if (!details) return;
    details.open = !details.open;
    if (details.open && focus) details.querySelector(focus).focus();
  }
  function scroll(by) {
    const panes = [...main.querySelectorAll(".answer .said")].filter((p) => p.scrollHeight > p.clientHeight + 1);
    if (panes.length) panes.forEach((p) => p.scrollBy(0, by)); else window.scrollBy(0, by);
  }

  document.addEventListener("keydown", (e) => {
    if (typing(e)) {
      if (e.key === "Escape") { const d = e.target.closest("details"); if (d) { d.open = false; d.querySelector("summary").focus(); } }
      if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); press("details.ideal button"); }
      return;
    }
    const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
    if ((e.ctrlKey || e.metaKey) && key === "z") { e.preventDefault(); if (!busy) press('[data-key="u"]'); return; }
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const question = /^[1-9]$/.test(key) && document.querySelector(`#ask [data-key="${key}"]`);
    if (question) { e.preventDefault(); if (!e.repeat && performance.now() - shown > 300) question.click(); return; }
    if (key === "j" || key === "k") { scroll(key === "j" ? 120 : -120); e.preventDefault(); return; }
    const known = /^[1-7tbsueg?]$/.test(key) || key === "ArrowLeft" || key === "ArrowRight" || key === "Escape";
    if (!known) return;
    e.preventDefault();
    if (busy || performance.now() - shown < 300 || e.repeat) return;
    const skipping = main.querySelector("details.skip[open]");
    if (skipping && /^[1-5]$/.test(key)) return press(`[data-reason="${key}"]`);
    if (skipping && key === "Escape") { skipping.open = false; return; }
    if (/^[1-7]$/.test(key)) return press(`.scale [data-key="${key}"]`);
    if (key === "ArrowLeft") return press('.scale [data-key="2"]');
    if (key === "ArrowRight") return press('.scale [data-key="6"]');
    if (key === "t") return press('.scale [data-key="4"]');
    if (key === "b" || key === "u") return press(`[data-key="${key}"]`);
    if (key === "s") return open("skip");
    if (key === "e") return open("ideal", "textarea");
    if (key === "?") return open("keys");
    if (key === "g") { const link = document.getElementById("to-guidelines"); if (link) link.click(); }
  });

  // Whoever reads keeps the pair: the lease is renewed by activity, at most once a minute.
  for (const kind of ["keydown", "pointerdown", "scroll"]) {
    document.addEventListener(kind, () => {
      if (!form() || performance.now() - alive < 60000) return;
      alive = performance.now();
      const data = new URLSearchParams({ lease: form().dataset.lease, csrf: form().elements.csrf.value });
      fetch("/alive", { method: "POST", body: data }).catch(() => {});
    }, { passive: true, capture: true });
  }

  // What changes is asked for again. Of pieces only what differs is put in, so that focus, what is open and where one
  // reads stay; a part without pieces is put in whole.
  const live = document.querySelector("[data-poll]");
  if (live) {
    const pieces = (of) => new Map([...of.querySelectorAll("[data-piece]")].map((e) => [e.dataset.piece, e]));
    const texts = (of) => new Map([...pieces(of)].map(([name, e]) => [name, e.outerHTML]));
    let told = texts(live);
    const put = (text) => {
      const fresh = document.createElement("template");
      fresh.innerHTML = text;
      const held = live.contains(document.activeElement) ? document.activeElement : null;
      const inside = held && held.closest("details[id]"), href = held && held.getAttribute("href");
      const open = new Set([...live.querySelectorAll("details[open]")].map((d) => d.id));
      const news = texts(fresh.content);
      const read = [...pieces(live).values()].find((e) => e.getBoundingClientRect().bottom > 0);
      const top = read && read.getBoundingClientRect().top;
      fresh.content.querySelectorAll("details").forEach((d) => { d.open = open.has(d.id); });
      if (news.size && [...news.keys()].join() === [...told.keys()].join()) {
        const old = pieces(live);
        pieces(fresh.content).forEach((e, name) => { if (news.get(name) !== told.get(name)) old.get(name).replaceWith(e); });
      } else live.replaceChildren(fresh.content);
      told = news;
      const stays = read && pieces(live).get(read.dataset.piece);
      if (stays) window.scrollBy(0, stays.getBoundingClientRect().top - top);
      if (!held || live.contains(held)) return;
      const again = inside ? document.getElementById(inside.id) : null;
      const target = again ? again.querySelector("summary") : [...live.querySelectorAll("a")].find((l) => l.getAttribute("href") === href);
      if (target) target.focus({ preventScroll: true });
    };
    let tag = "";
    setInterval(async () => {
      try {
        const answer = await fetch(live.dataset.poll, { headers: tag ? { "If-None-Match": tag } : {} });
        if (answer.status === 200) { tag = answer.headers.get("ETag") || ""; put(await answer.text()); }
      } catch (error) { /* the next one may come */ }
    }, 5000);
  }
})();
