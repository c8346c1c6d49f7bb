// Pages that renew themselves: when one no longer can, it says so, and of when what it shows is.
"use strict";

(() => {
  const POLL = "[hx-trigger^='every']";
  const SILENT = "the console does not answer";
  const CUT = "the connection is cut off";
  const STREAM = "stream";
  const COUNT = "alert-count";

  const notice = document.querySelector("[data-cut-off]");
  const problems = document.getElementById("problems");
  const loaded = new Date();
  const known = new Map(); // part of the page -> when it was known to be right, if later than when the page was loaded
  const failing = new Map(); // part of the page -> why it can't be renewed
  let blamed = null; // the part whose problem is shown
  let said = ""; // that problem

  const isLive = () => document.querySelector(`main ${POLL}, main [sse-connect]`) !== null;
  const nameOf = (part) => (part.matches(POLL) ? part.id : null);

  // What is the same is not written again: it would be read out again.
  const write = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  const show = () => {
    if (notice === null) return;
    const parts = [...failing.keys()];
    const times = parts.map((part) => (known.get(part) ?? loaded).getTime());
    const moment = new Date(Math.min(Date.now(), ...times)).toISOString();
    const time = notice.querySelector("time");
    time.dateTime = moment;
    time.title = `${moment.slice(0, 10)} ${moment.slice(11, 19)} UTC`;
    write(time, moment.slice(11, 19));
    const why = [...new Set(failing.values())].filter((each) => each !== "").join("; ");
    write(notice.querySelector("span"), why === "" ? "." : `: ${why}`);
    notice.hidden = parts.length === 0 || !isLive();
  };

  const fails = (part, why) => {
    if (part === COUNT) {
      const count = document.getElementById(COUNT);
      if (count !== null) count.innerHTML = '<span class="count">!<span class="unseen"> nobody knows</span></span>';
    }
    // Without the count, what is below may be right all the same; without the console nothing is.
    if (part !== COUNT || why === SILENT) failing.set(part, why);
    else failing.delete(part);
    show();
  };

  const works = (part) => {
    known.set(part, new Date());
    failing.delete(part);
    if (blamed === part) {
      problems.replaceChildren();
      blamed = null;
    }
    show();
  };

  const warn = (why) => {
    const shown = document.createElement("p");
    shown.className = "notice bad";
    shown.textContent = `${why}; what you asked for may have been done all the same: look before you repeat it`;
    problems.replaceChildren(shown);
    blamed = null;
  };

  const unanswered = ({ detail }) => {
    const part = nameOf(detail.requestConfig.elt);
    if (part !== null) fails(part, SILENT);
    else warn(SILENT);
  };
  document.addEventListener("htmx:sendError", unanswered);
  document.addEventListener("htmx:timeout", unanswered);

  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    if (!detail.isError) return;
    const part = nameOf(detail.requestConfig.elt);
    // What is no problem of the console's own, a proxy's page for example, takes nobody's place.
    const isOwn = detail.xhr.getResponseHeader("HX-Retarget") !== null;
    const isSaid = blamed !== null && blamed === part && said === detail.serverResponse;
    if (!isOwn || isSaid) detail.shouldSwap = false;
    else [blamed, said] = [part, detail.serverResponse];
  });

  document.addEventListener("htmx:responseError", ({ detail }) => {
    const part = nameOf(detail.requestConfig.elt);
    const isOwn = detail.xhr.getResponseHeader("HX-Retarget") !== null;
    const why = isOwn ? "" : `in the console's place somebody answers ${detail.xhr.status}`; // its own problem is shown
    if (part !== null) fails(part, why);
    else if (!isOwn) warn(why);
  });

  document.addEventListener("htmx:afterRequest", ({ detail }) => {
    const part = nameOf(detail.requestConfig.elt);
    if (part !== null && detail.successful) works(part);
  });

  const away = ({ data }) => {
    const told = JSON.parse(data);
    if (told.as_of !== null) known.set(STREAM, new Date(told.as_of));
    fails(STREAM, told.message);
  };
  const back = () => works(STREAM);
  const ended = ({ data }) => {
    if (data !== "over") fails(STREAM, data);
  };
  document.addEventListener("htmx:sseOpen", ({ detail }) => {
    // The same functions each time: a stream that is opened again keeps the listeners that it has.
    detail.source.addEventListener("away", away);
    detail.source.addEventListener("back", back);
    detail.source.addEventListener("end", ended);
    failing.delete(STREAM); // what is shown is of when it was, until something comes
    show();
  });
  // A stream that has to be begun anew goes on from what the page shows by now; the browser itself does the same.
  document.addEventListener("htmx:sseMessage", ({ detail, target }) => {
    const stream = target.closest("[sse-connect*='seen=']");
    if (stream === null || !detail.lastEventId) return;
    const address = new URL(stream.getAttribute("sse-connect"), location.href);
    address.searchParams.set("seen", detail.lastEventId);
    stream.setAttribute("sse-connect", address.pathname + address.search);
  });
  document.addEventListener("htmx:sseError", () => {
    if (!failing.has(STREAM)) known.set(STREAM, new Date()); // until now, what has changed was told
    fails(STREAM, CUT);
  });
})();
