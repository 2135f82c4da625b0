//! Who may come to a route: its users, a service that is asked, or both in this order.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};

use crate::{
    config::plan::{self, Kind as SiteKind},
    conn::RequestObservers,
    error::ProxyError,
    layer::{
        basic_auth::{self, BasicAuth, Passwords},
        edit_fields::{self, Values},
        forward_auth::ForwardAuth,
        forwarded::Client,
        limit, loop_detection, redirect,
    },
    message::{Request, Response},
    upstream::{self, Upstream},
};

/// Decides who may come.
pub struct Guard {
    basic_auth: Option<BasicAuth>,
    forward_auth: Option<AuthService>,
}

/// A service that is asked who may come.
struct AuthService {
    layer: ForwardAuth,
    upstream: Upstream,
}

/// Whether a request may come, as far as it is known without a wait.
pub enum Admission {
    /// It may.
    Granted(Request),
    /// That has to be found out.
    Pending(BoxFuture<'static, Result<Decision, ProxyError>>),
}

/// Whether a request may come.
pub enum Decision {
    /// It may.
    Admit(Box<Request>),
    /// It may not: what its client gets.
    Refuse(Response),
}

impl Guard {
    /// The `WWW-Authenticate` of a 401 of ours.
    pub fn challenge(&self) -> Option<&HeaderValue> {
        self.basic_auth.as_ref().map(BasicAuth::challenge)
    }

    /// The service that is asked.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.forward_auth.as_ref().map(|service| &service.upstream)
    }

    /// Where a client is sent in place of the service's 401.
    pub fn sign_in(&self, values: &Values<'_>) -> Option<String> {
        self.forward_auth.as_ref()?.layer.sign_in().map(|to| edit_fields::fill(to, values))
    }

    /// Decides about a request. The service is asked once the password is known to be right.
    ///
    /// # Errors
    /// The request is refused at once.
    pub fn admit(
        self: &Arc<Self>,
        mut request: Request,
        client: &Client,
        sign_in: Option<String>,
    ) -> Result<Admission, ProxyError> {
        let mut verified = None;
        if let Some(basic_auth) = &self.basic_auth {
            match basic_auth.admit(&request.fields, client.ip) {
                basic_auth::Admission::Granted => {}
                basic_auth::Admission::Refused(kind) => return Err(kind.into()),
                basic_auth::Admission::Pending(verification) => verified = Some(verification),
            }
            if !basic_auth.passes_authorization() {
                request.fields.remove(header::AUTHORIZATION);
            }
        }
        let asked = self.forward_auth.as_ref().map(|service| service.ask(&mut request, client)).transpose()?;
        if verified.is_none() && asked.is_none() {
            return Ok(Admission::Granted(request));
        }
        let guard = self.clone();
        Ok(Admission::Pending(Box::pin(async move {
            if let Some(verified) = verified {
                verified.await?;
            }
            if let (Some(service), Some(answer)) = (&guard.forward_auth, asked)
                && let Err(refusal) = service.layer.admit(answer.await?, &mut request.fields).await
            {
                return match sign_in.filter(|_| refusal.status == StatusCode::UNAUTHORIZED) {
                    Some(location) => redirect::location(&location, StatusCode::FOUND).map(Decision::Refuse),
                    None => Ok(Decision::Refuse(refusal)),
                };
            }
            Ok(Decision::Admit(Box::new(request)))
        })))
    }
}

impl AuthService {
    /// The answer about a request; nothing is sent before it is awaited.
    fn ask(
        &self,
        request: &mut Request,
        client: &Client,
    ) -> Result<BoxFuture<'static, Result<Response, ProxyError>>, ProxyError> {
        loop_detection::check(&request.fields)?;
        let mut question = self.layer.question(request, client)?;
        loop_detection::announce(&mut question.fields);
        limit::bound_head(&question, SiteKind::Http)?;
        self.layer.forget(&mut request.fields);
        let observers = RequestObservers { interim: None, phases: None, client: Some(client.ip) };
        Ok(self.upstream.send(question, observers))
    }
}

/// Makes the guards of a site: routes that ask the same have one, and its connections.
pub struct Guards<'a> {
    known: Vec<(&'a plan::Guard, Arc<Guard>)>,
    passwords: &'a Arc<Passwords>,
    env: &'a upstream::Env,
}

impl<'a> Guards<'a> {
    /// Those of a site that has none yet.
    pub const fn new(passwords: &'a Arc<Passwords>, env: &'a upstream::Env) -> Self {
        Self { known: Vec::new(), passwords, env }
    }

    /// The guard of a plan; none for what is open.
    pub fn of(&mut self, plan: &'a plan::Guard) -> Option<Arc<Guard>> {
        if plan.is_open() {
            return None;
        }
        if let Some((_, known)) = self.known.iter().find(|(known, _)| *known == plan) {
            return Some(known.clone());
        }
        let guard = Arc::new(Guard {
            basic_auth: plan.basic_auth.clone().map(|users| BasicAuth::new(users, self.passwords.clone())),
            forward_auth: plan.forward_auth.clone().map(|service| AuthService {
                upstream: Upstream::new(&service.upstream, self.env),
                layer: ForwardAuth::new(service),
            }),
        });
        self.known.push((plan, guard.clone()));
        Some(guard)
    }
}
