// Pages that refresh themselves show when they were last updated if they no longer can.
"use strict";

(() => {
  const POLL = "[hx-trigger^='every']";
  const NO_RESPONSE = "the console does not respond";
  const DISCONNECTED = "the connection is interrupted";
  const STREAM = "stream";
  const COUNT = "alert-count";

  const notice = document.querySelector("[data-outdated]");
  const problems = document.getElementById("problems");
  const loaded = new Date();
  const updated = new Map(); // part of the page -> time of its last update, if later than the load of the page
  const failing = new Map(); // part of the page -> why it cannot be updated
  let problemPart = null; // the part whose problem is shown
  let problemHtml = "";

  const hasUpdates = () => document.querySelector(`main ${POLL}, main [sse-connect]`) !== null;
  const nameOf = (part) => (part.matches(POLL) ? part.id : null);

  // Equal text is not written again, since screen readers would announce it again.
  const write = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  const show = () => {
    if (notice === null) return;
    const parts = [...failing.keys()];
    const times = parts.map((part) => (updated.get(part) ?? loaded).getTime());
    const since = new Date(Math.min(Date.now(), ...times)).toISOString();
    const time = notice.querySelector("time");
    time.dateTime = since;
    time.title = `${since.slice(0, 10)} ${since.slice(11, 19)} UTC`;
    write(time, since.slice(11, 19));
    const reasons = [...new Set(failing.values())].filter((reason) => reason !== "").join("; ");
    write(notice.querySelector("span"), reasons === "" ? "." : `: ${reasons}`);
    notice.hidden = parts.length === 0 || !hasUpdates();
  };

  const fail = (part, reason) => {
    if (part === COUNT) {
      const count = document.getElementById(COUNT);
      if (count !== null) count.innerHTML = '<span class="count">!<span class="visually-hidden"> unknown</span></span>';
    }
    // The rest of the page may be current without the count, but not without the console.
    if (part !== COUNT || reason === NO_RESPONSE) failing.set(part, reason);
    else failing.delete(part);
    show();
  };

  const succeed = (part) => {
    updated.set(part, new Date());
    failing.delete(part);
    if (problemPart === part) {
      problems.replaceChildren();
      problemPart = null;
    }
    show();
  };

  const warn = (reason) => {
    const message = document.createElement("p");
    message.className = "notice bad";
    const text = `${reason}; the outcome of your action is unknown: check before you repeat it`;
    message.textContent = text[0].toUpperCase() + text.slice(1);
    problems.replaceChildren(message);
    problemPart = null;
  };

  const onNoResponse = ({ detail }) => {
    const part = nameOf(detail.requestConfig.elt);
    if (part !== null) fail(part, NO_RESPONSE);
    else warn(NO_RESPONSE);
  };
  document.addEventListener("htmx:sendError", onNoResponse);
  document.addEventListener("htmx:timeout", onNoResponse);

  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    if (!detail.isError) return;
    const part = nameOf(detail.requestConfig.elt);
    // An error page of a proxy, for example, is not the console's and must not be shown.
    const isOwn = detail.xhr.getResponseHeader("HX-Retarget") !== null;
    const isShown = problemPart !== null && problemPart === part && problemHtml === detail.serverResponse;
    if (!isOwn || isShown) detail.shouldSwap = false;
    else [problemPart, problemHtml] = [part, detail.serverResponse];
  });

  document.addEventListener("htmx:responseError", ({ detail }) => {
    const part = nameOf(detail.requestConfig.elt);
    const isOwn = detail.xhr.getResponseHeader("HX-Retarget") !== null;
    const reason = isOwn ? "" : `unexpected response ${detail.xhr.status}, not from the console`; // own problems are shown
    if (part !== null) fail(part, reason);
    else if (!isOwn) warn(reason);
  });

  document.addEventListener("htmx:afterRequest", ({ detail }) => {
    const part = nameOf(detail.requestConfig.elt);
    if (part !== null && detail.successful) succeed(part);
  });

  const onUnavailable = ({ data }) => {
    const outage = JSON.parse(data);
    if (outage.as_of !== null) updated.set(STREAM, new Date(outage.as_of));
    fail(STREAM, outage.message);
  };
  const onAvailable = () => succeed(STREAM);
  const onEnd = ({ data }) => {
    if (data !== "final") fail(STREAM, data);
  };
  document.addEventListener("htmx:sseOpen", ({ detail }) => {
    // The same functions each time, so that a reconnected stream does not get duplicate listeners.
    detail.source.addEventListener("unavailable", onUnavailable);
    detail.source.addEventListener("available", onAvailable);
    detail.source.addEventListener("end", onEnd);
    failing.delete(STREAM);
    show();
  });
  // A new stream continues from the displayed data, as the browser's own reconnection does.
  document.addEventListener("htmx:sseMessage", ({ detail, target }) => {
    const stream = target.closest("[sse-connect*='seen=']");
    if (stream === null || !detail.lastEventId) return;
    const address = new URL(stream.getAttribute("sse-connect"), location.href);
    address.searchParams.set("seen", detail.lastEventId);
    stream.setAttribute("sse-connect", address.pathname + address.search);
  });
  document.addEventListener("htmx:sseError", () => {
    if (!failing.has(STREAM)) updated.set(STREAM, new Date()); // complete until now
    fail(STREAM, DISCONNECTED);
  });
})();
