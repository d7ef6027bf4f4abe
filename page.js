// What the scripts of both pages begin with: ticketapi.py puts this file where they say `include: page.js`.

const $ = (id) => document.getElementById(id);

// Makes an element: el("p.lead", {id: "x", click: f}, "text", node, [more]). Functions listen, true is an empty attribute,
// false and undefined are left out. All of a page is made with it: no text ever becomes markup.
function el(kind, options, ...children) {
  const [name, ...classes] = kind.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(options ?? {})) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== false && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return element;
}

// The token: kept for this tab, under one name for both pages, and never in an address.
const TOKEN_KEY = "ticketapi.token";
let tokenInMemory = ""; // where the browser keeps nothing, until the page is left

function readToken() {
  try {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  } catch {
    return tokenInMemory;
  }
}

// An empty text forgets it.
function keepToken(text) {
  tokenInMemory = text;
  try {
    if (text) sessionStorage.setItem(TOKEN_KEY, text);
    else sessionStorage.removeItem(TOKEN_KEY);
  } catch { /* memory has it */ }
}
