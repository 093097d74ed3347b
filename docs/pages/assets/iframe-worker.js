/* Browsers refuse workers to pages opened as files (file://). There, and only there, the search's worker runs in a
   hidden frame instead. Elsewhere nothing changes. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.frame = frame.contentWindow
      addEventListener("message", event => {
        if (event.source === this.frame) this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      const setUp = () => {
        window.postMessage = message => parent.postMessage(message, "*")
        window.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise(done => {
          const script = document.createElement("script")
          script.src = url
          script.onload = done
          document.body.appendChild(script)
        })), Promise.resolve())
      }
      const page = this.frame.document
      this.loaded = new Promise(done => { this.frame.loaded = done })
      page.open()
      page.write(`<body><script>const receive = window.postMessage.bind(window); (${setUp})()</script>`
        + `<script src="${new URL(url, location.href)}" onload="loaded(receive)"></script></body>`)
      page.close()
    }
    postMessage(message) {
      this.loaded.then(receive => receive(message, "*"))
    }
    terminate() {}
  }
}
