//! The way of a connection's requests: its place among the connections, its token, its endpoint.

use crate::control::Control;
use crate::error::{Code, ControlError};
use crate::http::exchange::Exchange;
use crate::http::head::{Head, Method};
use crate::http::wire::{Lost, Wire};
use crate::http::{Failure, Limits};
use crate::routes::{Endpoint, NoRoute, method_not_allowed, resolve};
use crate::token::is_accepted;
use alloc::rc::Rc;
use core::cell::Cell;
use core::pin::pin;
use futures_util::future::{Either, select};
use platform::Runtime;
use platform::net::{Ends, Stream};
use platform::sync::{Notify, Semaphore};
use platform::time::Timers;

/// The management interface of one appliance.
pub struct Api<C: Control> {
    pub(crate) control: Rc<C>,
    timers: Timers,
    limits: Limits,
    pub(crate) counters: Counters,
    /// Held while a wrong token is answered, so that guesses are slow however many connections make them.
    refusals: Semaphore,
    closing: Cell<bool>,
    changed: Notify,
}

/// What the interface counts of itself.
#[derive(Default)]
pub(crate) struct Counters {
    /// Connections now.
    pub connections: Cell<usize>,
    /// Requests answered, by the first digit of the status.
    pub answers: [Cell<u64>; 6],
}

/// A connection that is counted.
struct Slot<'a, C: Control>(&'a Api<C>);

impl<'a, C: Control> Slot<'a, C> {
    fn take(api: &'a Api<C>) -> Option<Slot<'a, C>> {
        let connections = &api.counters.connections;
        if connections.get() >= api.limits.connections_max {
            return None;
        }
        connections.set(connections.get() + 1);
        Some(Slot(api))
    }
}

impl<C: Control> Drop for Slot<'_, C> {
    fn drop(&mut self) {
        let connections = &self.0.counters.connections;
        connections.set(connections.get().saturating_sub(1));
        self.0.changed.notify_all();
    }
}

impl<C: Control> Api<C> {
    /// The interface to `control`.
    pub fn new(runtime: &Runtime, control: Rc<C>, limits: Limits) -> Api<C> {
        Api {
            control,
            timers: runtime.timers.clone(),
            limits,
            counters: Counters::default(),
            refusals: Semaphore::new(1),
            closing: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// Serves one connection to its end.
    pub async fn serve<S: Stream>(&self, stream: S) {
        let ends = stream.ends();
        let slot = Slot::take(self);
        let mut wire = Wire::new(stream, self.timers.clone(), self.limits.clone());
        if slot.is_none() {
            let error = ControlError::new(Code::TooManyConnections, "all connections are taken", "try again later");
            return self.turn_away(wire, &ends, &error).await;
        }
        loop {
            let head = match wire.next_head(self.closed()).await {
                Ok(Some(head)) => head,
                Ok(None) => return,
                Err(Failure::Refused(error)) => return self.turn_away(wire, &ends, &error).await,
                Err(Failure::Lost(lost)) => return log::debug!("http {ends}: {lost}"),
            };
            let mut exchange = Exchange::new(&mut wire, head);
            if self.closing.get() {
                exchange.close_after();
            }
            let outcome = self.handle(&mut exchange).await;
            let again = exchange.finish(outcome).await;
            let status = exchange.status();
            self.note(&ends, Some(exchange.head()), status);
            match again {
                Ok(true) => {}
                Ok(false) if status.is_some_and(|status| status >= 400) => return wire.linger().await,
                Ok(false) => return,
                Err(lost) => return log::debug!("http {ends}: {lost}"),
            }
        }
    }

    /// Ends idle connections, and the others with the request under way; resolves when all are closed.
    pub async fn shutdown(&self) {
        self.closing.set(true);
        self.changed.notify_all();
        loop {
            let changed = self.changed.notified();
            if self.counters.connections.get() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Waits for an event of the pool: not too long, and not while the interface closes.
    pub(crate) async fn wait_for_event(&self, seen: u64) -> Result<(), ControlError> {
        let event = pin!(self.control.event_after(seen));
        let given_up = pin!(self.timers.timeout(self.limits.event_timeout, self.closed()));
        match select(event, given_up).await {
            Either::Left((event, _)) => event,
            Either::Right(_) => Ok(()),
        }
    }

    /// Resolves once the interface closes.
    async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if self.closing.get() {
                return;
            }
            changed.await;
        }
    }

    /// Answers a connection that has no request, and closes it.
    async fn turn_away<S: Stream>(&self, mut wire: Wire<S>, ends: &Ends, error: &ControlError) {
        self.note(ends, None, Some(error.code.status()));
        match wire.refuse(error).await {
            Ok(()) => wire.linger().await,
            Err(lost) => log::debug!("http {ends}: {lost}"),
        }
    }

    /// Counts and logs an answer. Of the request only what is no secret: not the headers, not the query, and the
    /// path only if it is one of ours and the peer has a token: others write theirs in the strangest places.
    fn note(&self, ends: &Ends, head: Option<&Head>, status: Option<u16>) {
        let Some(status) = status else { return };
        if let Some(answers) = self.counters.answers.get(usize::from(status / 100)) {
            answers.set(answers.get().wrapping_add(1));
        }
        let known = head.filter(|head| status != 401 && resolve(head.method, &head.path).is_ok());
        let level = match known.map(|head| head.method) {
            _ if status >= 500 || status == 401 => log::Level::Warn,
            Some(Method::Get | Method::Head) | None => log::Level::Debug,
            Some(_) => log::Level::Info,
        };
        match known {
            Some(head) => log::log!(level, "http {ends} {} {} {status}", head.method, head.path),
            None => log::log!(level, "http {ends} {status}"),
        }
    }

    /// From the request to its endpoint: the token first, so that nobody without one learns anything.
    async fn handle<S: Stream>(&self, exchange: &mut Exchange<'_, S>) -> Result<(), Failure> {
        let Head { method, path, query, .. } = exchange.head();
        let (route, query) = (resolve(*method, path), query.is_some());
        if route != Ok(Endpoint::Health) && !self.is_authorized(exchange.head()) {
            return Ok(self.refuse_token(exchange).await?);
        }
        match route {
            Ok(endpoint) if query && !endpoint.takes_query() => {
                Err(ControlError::invalid("this path takes no query", "leave out the ? and the rest"))?
            }
            Ok(endpoint) => self.call(endpoint, exchange).await,
            Err(NoRoute::Path(error)) => Err(error.into()),
            Err(NoRoute::Method { allow }) => {
                Ok(exchange.refuse(&method_not_allowed(&allow), &[("Allow", &allow)]).await?)
            }
        }
    }

    fn is_authorized(&self, head: &Head) -> bool {
        head.bearer.as_ref().is_some_and(|token| is_accepted(&token.hash(), &self.control.tokens()))
    }

    async fn refuse_token<S: Stream>(&self, exchange: &mut Exchange<'_, S>) -> Result<(), Lost> {
        if exchange.head().bearer.is_some() {
            let _turn = self.refusals.acquire(1).await;
            self.timers.sleep(self.limits.refusal_delay).await;
        }
        let hint = "send the header `Authorization: Bearer TOKEN`; the console showed the token at the first boot";
        let error = ControlError::new(Code::Unauthorized, "a valid token is needed", hint);
        exchange.refuse(&error, &[("WWW-Authenticate", "Bearer realm=\"gossamer\"")]).await
    }
}
